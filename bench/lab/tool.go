package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// ctlProgram is the file penstockctl beside PENSTOCKD, else one built from this module.
var ctlProgram = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("PENSTOCKD"); path != "" {
		beside, err := filepath.Abs(filepath.Join(filepath.Dir(path), "penstockctl"))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	return buildGo("penstockctl")
})

// Ctl runs penstockctl on the node, against its daemon, and returns what it printed and its exit status.
func (n *Node) Ctl(args ...string) (output string, status int, err error) {
	program, err := ctlProgram()
	if err != nil {
		return "", 0, err
	}
	p, err := n.NS.Start(exec.Command(program, append([]string{"--socket", n.socket()}, args...)...))
	if err != nil {
		return "", 0, err
	}
	err = p.Wait(2 * time.Minute)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, ErrRunning):
		p.Kill()
		return p.Output(), 0, fmt.Errorf("lab: penstockctl %q on %s: %w", args, n.Name, err)
	case errors.As(err, &exit):
		return p.Output(), exit.ExitCode(), nil
	}
	return p.Output(), 0, err
}
