package lab

import (
	"errors"
	"fmt"
)

// Launch starts the node's daemon with the configuration of the last [Node.Start] and waits for nothing: for those who kill it
// while it starts. The daemon before must have ended.
func (n *Node) Launch() (*Daemon, error) {
	if n.Daemon == nil {
		return nil, errors.New("lab: Launch needs a configuration, which Start writes")
	}
	if !n.Daemon.Process.Exited() {
		return nil, fmt.Errorf("lab: the daemon on %s still runs", n.Name)
	}
	program, err := daemonProgram()
	if err != nil {
		return nil, err
	}
	p, err := n.NS.Start(n.daemonCommand(program, n.Daemon.Config))
	if err != nil {
		return nil, err
	}
	d := *n.Daemon
	d.Process = p
	n.Daemon = &d
	return n.Daemon, nil
}
