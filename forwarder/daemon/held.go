package daemon

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// held adds to an error about a port that is taken the kernel's device which has it: no list of processes shows that one.
func (s *state) held(err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	ports := map[uint16]bool{s.cfg.Encap.Port: true}
	for _, p := range s.peers {
		ports[s.resolve(p).Port] = true
	}
	for port := range ports {
		if who, _, e := hostnet.PortHolders(port, true); e == nil && len(who) > 0 && port != 0 {
			return fmt.Errorf("%w: %s holds UDP port %d (ip link del …, for flannel's after flanneld has gone)", err, who[0], port)
		}
	}
	return err
}
