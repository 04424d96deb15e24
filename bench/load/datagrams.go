package load

import (
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

const (
	batch   = 64  // messages a system call
	podTurn = 16  // messages to one pod before the next has its turn, with many pods
	pattern = 768 // prepared messages a socket: sizes and flows are shuffled over them, then they repeat
)

// outlet is a socket that sends, with everything it will ever send.
type outlet struct {
	fd   int
	msgs *messages
	next int
}

// sendDatagrams sends without a limit from one thread: a socket a pod. With one flow the socket is connected; with
// several it sends to as many ports, which lets flows change from datagram to datagram inside one system call.
func (j *running) sendDatagrams() error {
	byPod := map[int][]Flow{}
	var order []int
	for _, f := range j.Flows {
		if byPod[f.Pod] == nil {
			order = append(order, f.Pod)
		}
		byPod[f.Pod] = append(byPod[f.Pod], f)
	}
	var outlets []*outlet
	for _, pod := range order {
		o, err := j.outlet(firstPod+pod, byPod[pod])
		if err != nil {
			return err
		}
		outlets = append(outlets, o)
	}
	turn := batch
	if len(outlets) > 1 {
		turn = podTurn
	}
	j.run(func(t *thread) error {
		i := 0
		return failing("sendmmsg", j.loop(func() error {
			o := outlets[i%len(outlets)]
			i++
			n, err := o.msgs.send(o.fd, o.next, o.next+turn)
			if err != nil && !again(err) {
				return err
			}
			bytes := 0
			for k := o.next; k < o.next+n; k++ {
				bytes += int(o.msgs.hdrs[k].len)
			}
			t.count(n, bytes)
			if o.next += n; o.next+turn > pattern {
				o.next = 0
			}
			return nil
		}))
	})
	return nil
}

func (j *running) outlet(ns int, flows []Flow) (*outlet, error) {
	fd, err := datagramSocket(ns)
	if err != nil {
		return nil, err
	}
	j.own(fd)
	if len(flows) == 1 {
		if err := unix.Connect(fd, sockaddr(flows[0].At)); err != nil {
			return nil, fmt.Errorf("load: connect to %v: %w", flows[0].At, err)
		}
	}
	o := &outlet{fd: fd, msgs: newMessages(pattern)}
	sizes, chosen := j.shuffled(len(flows))
	payload := make([]byte, 64<<10)
	for i := range payload {
		payload[i] = byte(i)
	}
	for i := range pattern {
		var name *unix.RawSockaddrInet4
		if len(flows) > 1 {
			name = rawSockaddr(flows[chosen[i]].At)
		}
		o.msgs.set(i, payload[:sizes[i]], name)
	}
	return o, nil
}

// shuffled is the order of sizes and flows, always the same one.
func (j *running) shuffled(flows int) (sizes, chosen []int) {
	random := rand.New(rand.NewPCG(1, 2))
	burst := max(1, j.Burst)
	for i := range pattern {
		sizes = append(sizes, j.Sizes[i%len(j.Sizes)])
	}
	random.Shuffle(pattern, func(a, b int) { sizes[a], sizes[b] = sizes[b], sizes[a] })
	var turns []int
	for i := range (pattern + burst - 1) / burst {
		turns = append(turns, i%flows)
	}
	random.Shuffle(len(turns), func(a, b int) { turns[a], turns[b] = turns[b], turns[a] })
	for i := range pattern {
		chosen = append(chosen, turns[i/burst])
	}
	return sizes, chosen
}

// receiveDatagrams takes what comes on a socket a flow, all from one thread.
func (j *running) receiveDatagrams() (ports []uint16, err error) {
	var fds []int
	for _, f := range j.Flows {
		fd, port, err := j.receiving(f, datagramSocket)
		if err != nil {
			return nil, err
		}
		fds, ports = append(fds, fd), append(ports, port)
	}
	in := newMessages(batch)
	for i := range batch {
		in.set(i, make([]byte, 2048), nil)
	}
	take := func(t *thread, fd, flags int) (int, error) {
		n, err := in.receive(fd, flags)
		if err != nil {
			if again(err) {
				err = nil
			}
			return 0, err
		}
		bytes := 0
		for i := range n {
			bytes += int(in.hdrs[i].len)
		}
		t.count(n, bytes)
		return n, nil
	}
	if len(fds) == 1 {
		j.run(func(t *thread) error {
			return failing("recvmmsg", j.loop(func() error {
				_, err := take(t, fds[0], unix.MSG_WAITFORONE)
				return err
			}))
		})
		return ports, nil
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("load: epoll: %w", err)
	}
	j.own(epoll)
	for _, fd := range fds {
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return nil, fmt.Errorf("load: epoll: %w", err)
		}
	}
	j.run(func(t *thread) error {
		events := make([]unix.EpollEvent, len(fds))
		return failing("epoll_wait or recvmmsg", j.loop(func() error {
			n, err := epollWait(epoll, events)
			if err != nil && err != unix.EINTR {
				return err
			}
			for i := range max(n, 0) {
				if _, err := take(t, int(events[i].Fd), unix.MSG_DONTWAIT); err != nil {
					return err
				}
			}
			return nil
		}))
	})
	return ports, nil
}
