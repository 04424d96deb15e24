package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// newLogger writes text for people on a terminal and JSON for collectors elsewhere. The level may change at any time.
func newLogger(w io.Writer, level *slog.LevelVar) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return slog.New(slog.NewTextHandler(w, o))
		}
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// parseLevel takes exactly the four names that levelName gives.
func parseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if s == levelName(l) {
			return l, nil
		}
	}
	return 0, fmt.Errorf("%q is not a log level: debug, info, warn or error", s)
}

func levelName(l slog.Level) string { return strings.ToLower(l.String()) }

// said is why something that is tried again and again failed, as the log has it: the same is not told each time. Empty: it did not.
type said string

// news says whether err, nil if the last try succeeded, is yet to be told, and whether what was told is over.
func (s *said) news(err error) (news, over bool) {
	why := said("")
	if err != nil {
		why = said(err.Error())
	}
	news, over = err != nil && why != *s, err == nil && *s != ""
	*s = why
	return news, over
}
