package lab

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// relayProgram is bench/tools/relay.c, the least relay through user space, compiled once a process.
var relayProgram = sync.OnceValues(func() (string, error) {
	if _, err := exec.LookPath("cc"); err != nil {
		return "", fmt.Errorf("lab: the bare relay (bench/tools/relay.c) needs a C compiler, and there is no cc: install one")
	}
	return build("relay", "cc", func(to string) []string { return []string{"-O2", "-o", to, "bench/tools/relay.c"} })
})

// startRelay starts a relay between the pod and the uplink; its TUN becomes the pod's eth0. It knows one pod of its node and one other
// node, and ends with the lab.
func (p *Pod) startRelay() error {
	if len(p.Node.Pods) > 1 {
		return fmt.Errorf("lab: a bare relay has one pod, and %s has one already", p.Node.Name)
	}
	program, err := relayProgram()
	if err != nil {
		return err
	}
	relay, err := p.Node.NS.Start(exec.Command(program, p.HostDevice, p.Node.Device, p.Node.Lab.Config.Relay))
	if err != nil {
		return err
	}
	p.Node.closers = append(p.Node.closers, relay.Kill)
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(relay.Output(), "ready"); time.Sleep(time.Millisecond) {
		if relay.Exited() || time.Now().After(deadline) {
			return fmt.Errorf("lab: the relay of %s does not begin: %s", p.Node.Name, relay.Output())
		}
	}
	return p.takeTUN()
}
