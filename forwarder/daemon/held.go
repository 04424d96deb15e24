package daemon

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostlook"
)

// held names instead of what an error about a taken port advises the kernel's device that has it: no list of processes shows that one.
func (s *state) held(err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	ports := map[uint16]bool{s.cfg.Encap.Port: true}
	for _, p := range s.peers {
		ports[s.resolve(p).Port] = true
	}
	for port := range ports {
		if who, _, e := hostlook.PortHolders(port, true); e == nil && len(who) > 0 && port != 0 {
			device := who[0][strings.LastIndexByte(who[0], ' ')+1:]
			return fmt.Errorf("cannot open UDP port %d, which %s holds: %w; ip link del %s, for flannel's after flanneld has gone", port, who[0], unix.EADDRINUSE, device)
		}
	}
	return err
}
