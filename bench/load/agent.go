package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// childVar is set in the environment of a process that [Main] shall take over; descriptor 3 is its
// end of the socketpair, the pods' namespaces follow.
const childVar = "PENSTOCK_LOAD_PODS"

const firstPod = 4

// Agent is a process that makes or takes traffic. It ends with the process that started it.
type Agent struct {
	process *lab.Process
	control *os.File
	read    *bufio.Reader
	mu      sync.Mutex
}

// StartAgent starts a process for these pods, which are those of one node.
func StartAgent(pods []*lab.Pod) (*Agent, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("load: socketpair: %w", err)
	}
	far := os.NewFile(uintptr(pair[1]), "load")
	defer far.Close()
	// Non-blocking for the netpoller, so that deadlines work; the child's end stays blocking.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, err
	}
	a := &Agent{control: os.NewFile(uintptr(pair[0]), "load")}
	a.read = bufio.NewReader(a.control)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", childVar, len(pods)), calm())
	cmd.ExtraFiles = []*os.File{far}
	for _, p := range pods {
		// A duplicate, as an os.File closes what it holds.
		fd, err := unix.FcntlInt(uintptr(p.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			a.control.Close()
			return nil, fmt.Errorf("load: descriptor of %s: %w", p.Name, err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), p.Name))
	}
	if a.process, err = pods[0].NS.Start(cmd); err != nil {
		a.control.Close()
		return nil, err
	}
	return a, nil
}

// Process is what makes or takes the traffic.
func (a *Agent) Process() *lab.Process { return a.process }

// Start begins a job and returns when its sockets are there; a receiver's ports in the order of its flows.
func (a *Agent) Start(j Job) ([]uint16, error) {
	r, err := a.call(command{Op: "start", Job: &j})
	return r.Ports, err
}

// Mark reads the counters; with the first mark the measured time begins.
func (a *Agent) Mark() (Mark, error) {
	r, err := a.call(command{Op: "mark"})
	return r.Result.Mark, err
}

// Stop ends the job. Without one it does nothing.
func (a *Agent) Stop() (Result, error) {
	r, err := a.call(command{Op: "stop"})
	return r.Result, err
}

// Close ends the process.
func (a *Agent) Close() {
	a.control.Close()
	if a.process.Wait(200*time.Millisecond) != nil {
		a.process.Kill()
	}
}

// answerTime is generous: the traffic itself may take all cores.
const answerTime = 10 * time.Second

func (a *Agent) call(c command) (r reply, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := json.Marshal(c)
	if err != nil {
		return r, err
	}
	if err := a.control.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return r, err
	}
	if _, err = a.control.Write(append(b, '\n')); err == nil {
		b, err = a.read.ReadBytes('\n')
	}
	if err != nil {
		return r, fmt.Errorf("load: the traffic process does not answer to %q: %w\n%s", c.Op, err, a.process.Output())
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("load: answer to %q: %w", c.Op, err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}
