package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// answerLost is when a datagram's answer is given up; on TCP the run has failed.
const answerLost = 500 * time.Millisecond

var (
	errEnded   = errors.New("the connection has ended")
	errNothing = fmt.Errorf("nothing has come for %v", connectTime)
)

// ask makes one request after the other, a thread a flow, and notes how long each took.
func (j *running) ask() error {
	for _, f := range j.Flows {
		once := j.connection // does one request
		if j.Kind != Connect {
			fd, err := j.asker(f)
			if err != nil {
				return err
			}
			j.own(fd)
			request, answer := make([]byte, j.Sizes[0]), make([]byte, j.Sizes[0])
			number := uint64(0)
			once = func(Flow) error {
				number++
				binary.LittleEndian.PutUint64(request, number)
				if j.Kind == AskStreams {
					return j.exchange(fd, request, answer)
				}
				return j.datagram(fd, request, answer)
			}
		}
		j.run(func(t *thread) error {
			t.times = make([]time.Duration, 0, 1<<17)
			epoch := j.epoch.Load()
			turn := func() error {
				begin := now()
				if err := once(f); errors.Is(err, errLost) {
					if !j.stopped.Load() {
						t.lost.Add(1)
					}
					return nil
				} else if err != nil {
					return err
				}
				took := now() - begin
				t.count(1, 2*j.Sizes[0])
				if e := j.epoch.Load(); e != epoch {
					if epoch == 0 {
						t.times = t.times[:0] // what was before the first mark was warming up
					}
					epoch = e
				}
				t.times = append(t.times, took)
				return nil
			}
			if j.Kind == Connect {
				return j.repeat(turn)
			}
			return failing("a request or its answer", j.loop(turn))
		})
	}
	return nil
}

func (j *running) asker(f Flow) (int, error) {
	if j.Kind == AskStreams {
		return j.connected(f)
	}
	fd, err := datagramSocket(firstPod + f.Pod)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(f.At)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("load: connect to %v: %w", f.At, err)
	}
	return fd, nil
}

// connection is a connection with one request and its answer.
func (j *running) connection(f Flow) error {
	fd, err := j.connected(f)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer abort(fd) // or the ports are all in TIME_WAIT within a second
	b := make([]byte, j.Sizes[0])
	return failing("a request or its answer", j.exchange(fd, b, b))
}

var errLost = errors.New("load: no answer")

// datagram sends a request until its own answer comes; an older one is passed over.
func (j *running) datagram(fd int, request, answer []byte) error {
	if _, err := write(fd, request); err != nil && !again(err) {
		return err
	}
	for end := now() + answerLost; ; {
		n, err := read(fd, answer)
		switch {
		case err == nil && n == len(request) && binary.LittleEndian.Uint64(answer) == binary.LittleEndian.Uint64(request):
			return nil
		case err != nil && !again(err):
			return err
		case now() > end || j.stopped.Load():
			return errLost
		}
	}
}

// exchange is a request and its answer on a stream.
func (j *running) exchange(fd int, request, answer []byte) error {
	if _, err := write(fd, request); err != nil {
		return err
	}
	return j.fill(fd, answer)
}

// fill reads until b is full.
func (j *running) fill(fd int, b []byte) error {
	for end := now() + connectTime; len(b) > 0; {
		n, err := read(fd, b)
		switch {
		case err != nil && !again(err):
			return err
		case err == nil && n == 0:
			return errEnded
		case j.stopped.Load():
			return errLost
		case err != nil && now() > end:
			return errNothing
		}
		b = b[max(n, 0):]
	}
	return nil
}

// answerStream sends every request back.
func (j *running) answerStream(t *thread, fd int) error {
	b := make([]byte, j.Sizes[0])
	err := j.loop(func() error {
		if err := j.fill(fd, b); err != nil {
			return err
		}
		if _, err := write(fd, b); err != nil {
			return err
		}
		t.count(1, 2*len(b))
		return nil
	})
	if err == errEnded || err == errLost {
		return nil
	}
	return err
}

// answerDatagrams sends every datagram back, a thread a flow.
func (j *running) answerDatagrams() (ports []uint16, err error) {
	for _, f := range j.Flows {
		fd, port, err := j.receiving(f, datagramSocket)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
		j.run(func(t *thread) error {
			b := make([]byte, 2048)
			var from unix.RawSockaddrInet4
			return failing("receive or answer a request", j.loop(func() error {
				n, err := receiveFrom(fd, b, &from)
				if err == nil {
					_, err = sendTo(fd, b[:n], &from)
				}
				switch {
				case err == nil:
					t.count(1, 2*n)
				case !again(err):
					return err
				}
				return nil
			}))
		})
	}
	return ports, nil
}
