package load

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is one write or read of bulk TCP.
const chunk = 256 << 10

// connectTime is how long a connection may take before the run has failed.
const connectTime = 3 * time.Second

// connected makes a TCP socket and connects it.
func (j *running) connected(f Flow) (int, error) {
	fd, err := socket(firstPod+f.Pod, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := j.control(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	for end := now() + connectTime; ; {
		err = unix.Connect(fd, sockaddr(f.At))
		if err == nil || errors.Is(err, unix.EISCONN) {
			break
		}
		if !again(err) || errors.Is(err, unix.ECONNREFUSED) || now() > end || j.stopped.Load() {
			unix.Close(fd)
			return -1, fmt.Errorf("load: connect to %v: %w", f.At, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("load: TCP_NODELAY: %w", err)
	}
	return fd, nil
}

// Control says whether streams can have this congestion control here.
func Control(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("load: socket: %w", err)
	}
	defer unix.Close(fd)
	return (&running{Job: Job{TCP: name}}).control(fd)
}

// control sets the congestion control of a socket that is not connected yet, as BBR's pacing outlives it;
// connections of a listener take over its own.
func (j *running) control(fd int) error {
	if j.TCP == "" {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, j.TCP); err != nil {
		there, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
		return fmt.Errorf("load: congestion control %q, where this kernel has %s: %w", j.TCP, bytes.TrimSpace(there), err)
	}
	return nil
}

// sendStreams writes without a limit, a thread a stream. All are connected before the first byte.
func (j *running) sendStreams() error {
	payload := make([]byte, chunk)
	for i := range payload {
		payload[i] = byte(i)
	}
	var fds []int
	for _, f := range j.Flows {
		fd, err := j.connected(f)
		if err != nil {
			return err
		}
		j.own(fd)
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		j.run(func(t *thread) error {
			err := j.loop(func() error {
				n, err := write(fd, payload)
				if err != nil && !again(err) {
					return err
				}
				t.count(0, max(n, 0))
				return nil
			})
			if err != nil {
				return failing("write", err)
			}
			// What is on the way is of no use to anyone; a reset frees it on both ends.
			return abort(fd)
		})
	}
	return nil
}

// abort makes the coming close a reset, without TIME_WAIT.
func abort(fd int) error {
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// listen serves connections, one after the other on each flow's listener.
func (j *running) listen(serve func(t *thread, fd int) error) (ports []uint16, err error) {
	var fds []int
	for _, f := range j.Flows {
		fd, port, err := j.receiving(f, streamSocket)
		if err != nil {
			return nil, err
		}
		if err := j.control(fd); err != nil {
			return nil, err
		}
		if err := unix.Listen(fd, 64); err != nil {
			return nil, fmt.Errorf("load: listen: %w", err)
		}
		fds, ports = append(fds, fd), append(ports, port)
	}
	tv := unix.NsecToTimeval(int64(tick))
	for _, listener := range fds {
		j.run(func(t *thread) error {
			for !j.stopped.Load() {
				fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
				if err != nil {
					if again(err) || errors.Is(err, unix.ECONNABORTED) {
						continue
					}
					return fmt.Errorf("load: accept: %w", err)
				}
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
				unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
				err = serve(t, fd)
				abort(fd)
				unix.Close(fd)
				if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
					return fmt.Errorf("load: a served connection: %w", err)
				}
			}
			return nil
		})
	}
	return ports, nil
}

// readStream reads to the end of the stream.
func (j *running) readStream(t *thread, fd int) error {
	b := make([]byte, chunk)
	err := j.loop(func() error {
		n, err := read(fd, b)
		switch {
		case err != nil && again(err):
		case err != nil:
			return err
		case n == 0:
			return errEnded
		default:
			t.count(0, n)
		}
		return nil
	})
	if err == errEnded {
		return nil
	}
	return err
}
