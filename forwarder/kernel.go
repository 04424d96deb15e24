package forwarder

import (
	"fmt"

	"github.com/penstock-net/penstock/ring"
)

// kernel is the environment of real descriptors.
func kernel() environment {
	return environment{
		probe:    ring.Probe,
		openUDP:  func(c ring.UDPConfig) (ring.Socket, error) { return ring.OpenUDP(c) },
		openIPIP: func(c ring.RawConfig) (ring.Socket, error) { return ring.OpenIPIP(c) },
		openPacket: func(c ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
			s, err := ring.OpenPacket(c)
			if err != nil {
				return nil, nil, err
			}
			return s, s.Stats, nil
		},
		openWide: func(s *ring.PacketSocket, c ring.PacketConfig) (*ring.PacketSocket, error) {
			return s.OpenWide(c)
		},
		createTUN: func(c ring.TUNConfig, offload bool) (ring.Port, ring.Offload, error) {
			return createTUN(c, func(qs []*ring.Queue) ([]ring.Port, ring.Offload, error) { return setOffloads(c.Name, qs, offload) })
		},
		adoptTUN: func(fd int, offload bool) (ring.Port, ring.Offload, error) {
			q, err := ring.AdoptQueue(fd)
			if err != nil {
				return nil, 0, err
			}
			ports, o, err := setOffloads(q.Name(), []*ring.Queue{q}, offload)
			if err != nil {
				return nil, 0, err
			}
			return ports[0], o, nil
		},
		openHost: func(name string, mtu, queues int, offload bool) ([]ring.Port, ring.Offload, error) {
			return openTUN(ring.TUNConfig{Name: name, Queues: queues, Persistent: true, MTU: mtu}, offload)
		},
		openUring:   ring.NewUring,
		setPriority: ring.SetPriority,
		openTunnel: func(name string, queues int) ([]tunnel, error) {
			qs, err := ring.OpenTunnel(name, queues)
			var ts []tunnel
			for _, q := range qs {
				ts = append(ts, q)
			}
			return ts, err
		},
	}
}

// createTUN makes a pod's TUN. It is made to last only when all else has worked, so that what fails on the way leaves no device.
func createTUN(c ring.TUNConfig, negotiate func([]*ring.Queue) ([]ring.Port, ring.Offload, error)) (ring.Port, ring.Offload, error) {
	c.Queues, c.Persistent = 1, false
	qs, err := ring.CreateTUN(c)
	if err != nil {
		return nil, 0, err
	}
	ports, taken, err := negotiate(qs)
	if err != nil {
		return nil, 0, err
	}
	if err := qs[0].SetPersist(true); err != nil {
		qs[0].Close()
		return nil, 0, err
	}
	return ports[0], taken, nil
}

// openTUN makes or finds a TUN and says which offloads its queues took.
func openTUN(cfg ring.TUNConfig, offload bool) ([]ring.Port, ring.Offload, error) {
	qs, err := ring.CreateTUN(cfg)
	if err != nil {
		return nil, 0, err
	}
	return setOffloads(cfg.Name, qs, offload)
}

// setOffloads negotiates them for queues that it closes on an error.
func setOffloads(name string, qs []*ring.Queue, offload bool) (ports []ring.Port, taken ring.Offload, err error) {
	for _, q := range qs {
		ports = append(ports, q)
		if offload {
			taken, err = q.NegotiateOffload()
		} else {
			err = q.SetOffload(0)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		for _, q := range qs {
			q.Close()
		}
		return nil, 0, fmt.Errorf("set the offloads of %s: %w", name, err)
	}
	return ports, taken, nil
}
