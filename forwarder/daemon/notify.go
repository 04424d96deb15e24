package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// systemd is the socket to the service manager, kept from the first word on: a daemon that has run out of descriptors still
// feeds its watchdog.
var systemd struct {
	sync.Mutex
	address string
	conn    *net.UnixConn
}

// notify tells systemd; without NOTIFY_SOCKET it does nothing.
func notify(log *slog.Logger, state string) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return
	}
	systemd.Lock()
	defer systemd.Unlock()
	kept := systemd.conn != nil && systemd.address == address
	err := error(nil)
	if kept {
		_, err = systemd.conn.Write([]byte(state))
	}
	if !kept || err != nil { // whoever listened may have begun anew
		if err = redial(address); err == nil {
			_, err = systemd.conn.Write([]byte(state))
		}
	}
	if err != nil {
		log.Warn("systemd was not told", "state", state, "error", err)
	}
}

// redial replaces the socket, if another can be had.
func redial(address string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return err
	}
	if systemd.conn != nil {
		systemd.conn.Close()
	}
	systemd.address, systemd.conn = address, conn
	return nil
}

// reloading is the state for the begin of a reload; Type=notify-reload wants the time in it (sd_notify(3)).
func reloading() string {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, t.Nano()/1000)
}
