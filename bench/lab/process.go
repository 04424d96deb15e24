package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// startRequest asks a namespace's keeper thread to start a process.
type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

// keep is the keeper thread's life: it starts processes until the namespace is closed. PDEATHSIG is about the
// thread that forked, not about the process, hence this thread.
func (n *NS) keep() {
	for r := range n.starts {
		r.result <- r.cmd.Start()
	}
}

// Process is a program that runs inside a namespace.
type Process struct {
	cmd    *exec.Cmd
	output *output
	done   chan struct{}
	err    error // of Wait; valid after done
}

// Start starts cmd inside the namespace. It is killed when the lab's process ends, however that happens.
// Standard output and error are captured together. cmd.ExtraFiles are closed: the process has them then.
func (n *NS) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, output: &output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // Ctrl-C on a terminal is for the lab, which stops its daemons in order
	r := startRequest{cmd: cmd, result: make(chan error)}
	n.starts <- r
	err := <-r.result
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("lab: start %s in %s: %w", cmd.Path, n.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what the process has printed so far.
func (p *Process) Output() string { return p.output.String() }

// Exited reports whether the process has ended and was reaped.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends s.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// ErrRunning is returned by Wait when the process outlived the timeout.
var ErrRunning = errors.New("lab: the process still runs")

// Wait waits for the end of the process: nil for exit code 0, an *exec.ExitError, or ErrRunning.
func (p *Process) Wait(timeout time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		return ErrRunning
	}
}

// Kill kills the process and waits until it is gone.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// output collects what a process prints, at most the first and last MiB of it.
type output struct {
	mu   sync.Mutex
	head bytes.Buffer
	tail []byte
	cut  bool
}

const outputHalf = 1 << 20

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(b)
	if room := outputHalf - o.head.Len(); room > 0 {
		take := min(room, len(b))
		o.head.Write(b[:take])
		b = b[take:]
	}
	o.tail = append(o.tail, b...)
	if len(o.tail) > 2*outputHalf {
		o.tail = append(o.tail[:0], o.tail[len(o.tail)-outputHalf:]...)
		o.cut = true
	}
	return n, nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return o.head.String() + "\n[…]\n" + string(o.tail)
	}
	return o.head.String() + string(o.tail)
}
