package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/penstock-net/penstock/forwarder/config"
)

// configPatience is how long the configuration file may take to be read. A disk that hangs is the reload's trouble, and nobody else's.
const configPatience = 5 * time.Second

// configReader reads the configuration file, one read at a time: one that hangs holds a thread for as long as its disk does.
type configReader struct {
	path     string
	load     func(path string) (*config.Config, error)
	patience time.Duration
	busy     chan struct{} // has room while nothing is read
}

func newConfigReader(path string) configReader {
	return configReader{path: path, load: config.LoadRegular, patience: configPatience, busy: make(chan struct{}, 1)}
}

// read is the file as it is now: a read that began earlier is waited for, and its outcome is its caller's.
func (r configReader) read(ctx context.Context) (*config.Config, error) {
	late := time.After(r.patience)
	tooLate := func() error {
		return fmt.Errorf("the configuration file %s cannot be read within %v: look at the disk that it lies on (dmesg)", r.path, r.patience)
	}
	select {
	case r.busy <- struct{}{}:
	case <-late:
		return nil, tooLate()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	type outcome struct {
		cfg *config.Config
		err error
	}
	read := make(chan outcome, 1)
	go func() {
		cfg, err := r.load(r.path)
		<-r.busy
		read <- outcome{cfg, err}
	}()
	select {
	case o := <-read:
		return o.cfg, o.err
	case <-late:
		return nil, tooLate()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// watchHangup reloads at each SIGHUP. SIGTERM does not wait for it.
func (d *Daemon) watchHangup(ctx context.Context, hangup <-chan os.Signal) error {
	for {
		select {
		case <-hangup:
			look(d.nudge)
			_, _ = d.Reload(ctx) // says itself how it went
		case <-ctx.Done():
			return nil
		}
	}
}
