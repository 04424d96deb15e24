package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits sockaddr_un.sun_path with its final zero (unix(7)).
const maxSocketPath = 107

// Lock holds a control socket's name for one daemon. The kernel gives it up when the process dies, however it dies, so holding
// it proves that no other daemon lives behind the name.
type Lock struct {
	f    *os.File
	path string
}

// Acquire takes the lock of a socket path, making its directory. It does not touch the socket itself. `penstockd --cleanup`
// uses it to be sure that no daemon runs.
func Acquire(socket string) (*Lock, error) {
	if err := checkPath(socket); err != nil {
		return nil, err
	}
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("the directory of control.socket cannot be made: %w", err)
	}
	path := socket + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("the lock of the control socket cannot be opened: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("another penstockd is running with the control socket %s: stop it, or give this one another control.socket and state", socket)
			}
			return nil, fmt.Errorf("the lock %s of the control socket cannot be taken: %w", path, err)
		}
		// Release removes the file while it holds the lock: who waited for the old file must look again.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("the lock %s of the control socket cannot be read: %w", path, err)
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return &Lock{f: f, path: path}, nil
		}
		f.Close()
	}
}

// Release removes the lock file, unless another stands under its name, and gives the name up.
func (l *Lock) Release() error {
	var err error
	if l.stands() {
		err = os.Remove(l.path)
	}
	return errors.Join(err, l.f.Close())
}

// stands is whether the name still belongs to the file that we have locked.
func (l *Lock) stands() bool {
	mine, err1 := l.f.Stat()
	there, err2 := os.Stat(l.path)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

// Listener is a control socket with its lock. Who accepts does not notice that Restore has put the socket back.
type Listener struct {
	socket string
	mode   fs.FileMode // of the socket's directory

	mu     sync.Mutex // of what follows; held while the socket is put back
	l      *net.UnixListener
	file   fs.FileInfo // l's socket
	lock   *Lock
	closed bool
}

// Listen opens the control socket with mode 0600. What a dead daemon left there is replaced; a socket that is alive, and
// anything that is not a socket, is refused. Close removes the socket; the name stays ours until Release.
func Listen(ctx context.Context, socket string) (*Listener, error) {
	lock, err := Acquire(socket)
	if err != nil {
		return nil, err
	}
	l := &Listener{socket: socket, lock: lock, mode: 0o755}
	if fi, err := os.Stat(filepath.Dir(socket)); err == nil {
		l.mode = fi.Mode().Perm()
	}
	if l.l, l.file, err = listenLocked(ctx, socket); err != nil {
		lock.Release()
		return nil, err
	}
	return l, nil
}

// Accept waits for a connection, on whichever socket is ours at the moment.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		now := l.current()
		c, err := now.Accept()
		if err == nil || now == l.current() {
			return c, err
		}
	}
}

func (l *Listener) current() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.l
}

// Addr is the socket's.
func (l *Listener) Addr() net.Addr { return l.current().Addr() }

// Stands is whether the socket and its lock are where they were made. One that was closed is not looked for.
func (l *Listener) Stands() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || l.lock.stands() && l.there()
}

// there is whether the name still belongs to our socket. mu is held.
func (l *Listener) there() bool {
	fi, err := os.Lstat(l.socket)
	return err == nil && os.SameFile(fi, l.file)
}

// Restore puts back what somebody has removed: the directory, the lock, the socket. It goes by the rules of Listen, so a daemon that
// has taken the name meanwhile keeps it. Connections that were accepted go on.
func (l *Listener) Restore(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	if !l.lock.stands() {
		if err := l.makeDir(); err != nil {
			return fmt.Errorf("the directory of control.socket cannot be made: %w", err)
		}
		lock, err := Acquire(l.socket)
		if err != nil {
			return err
		}
		l.lock.f.Close()
		l.lock = lock
	}
	if l.there() {
		return nil
	}
	next, file, err := listenLocked(ctx, l.socket)
	if err != nil {
		return err
	}
	old := l.l
	l.l, l.file = next, file
	return old.Close()
}

// makeDir makes the socket's directory as it was, if it is not there.
func (l *Listener) makeDir() error {
	dir := filepath.Dir(l.socket)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, l.mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(dir, l.mode)) // whatever the umask is
}

// Close stops listening and removes the socket, if it is still ours.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && l.there() {
		os.Remove(l.socket)
	}
	l.closed = true
	return l.l.Close()
}

// Release stops listening, if that has not been done, and gives the name up: from then on a successor may start. A daemon calls
// it last, when its tunnel sockets are closed.
func (l *Listener) Release() error {
	l.Close() // a second time it only says that it is closed
	return l.lock.Release()
}

func listenLocked(ctx context.Context, socket string) (*net.UnixListener, fs.FileInfo, error) {
	if err := removeStale(ctx, socket); err != nil {
		return nil, nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The mode of the unbound socket is what bind(2) gives the file (unix_bind_bsd in net/unix/af_unix.c), so there is no
		// moment at which it stands open to others.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("the control socket cannot be opened: %w", err)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the name may be another's by then
	file, err := os.Lstat(socket)
	if err != nil {
		u.Close()
		return nil, nil, fmt.Errorf("the control socket cannot be looked at: %w", err)
	}
	return u, file, nil
}

// removeStale makes way for our socket. The lock is held, so what answers here is not one of ours, or one that predates locks.
func removeStale(ctx context.Context, socket string) error {
	fi, err := os.Lstat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the control socket cannot be looked at: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way of the control socket and is not a socket: remove it, or set control.socket to another path", socket)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", socket)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) { // also EAGAIN (its backlog is full) and EACCES: somebody lives there
		return fmt.Errorf("another program listens on the control socket %s: stop it, or set control.socket to another path", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the control socket of a dead daemon cannot be removed: %w", err)
	}
	return nil
}

func checkPath(socket string) error {
	if socket == "" || !filepath.IsAbs(socket) {
		return fmt.Errorf("the control socket %q is not an absolute path", socket)
	}
	if len(socket) > maxSocketPath {
		return fmt.Errorf("the control socket's path %s is %d bytes long, the kernel allows %d", socket, len(socket), maxSocketPath)
	}
	return nil
}
