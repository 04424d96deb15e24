package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Daemon is a running penstockd.
type Daemon struct {
	Node    *Node
	Process *Process
	Socket  string         // of the control API
	Config  string         // path of the configuration file
	Debug   netip.AddrPort // the debug listener, inside the node's namespace

	client *control.Client
}

// startTimeout is generous: two cores may be building something else.
const startTimeout = 60 * time.Second

// Start starts the node's daemon (after stopping one that still runs), waits until it is ready, and attaches
// the node's pods to it. Snippets of YAML go over the lab's configuration.
func (n *Node) Start(t TB, yaml ...string) *Daemon {
	t.Helper()
	n.stopForStart(t)
	if _, err := n.StartErr(yaml...); err != nil {
		t.Fatalf("%v", err)
	}
	n.afterStart(t)
	return n.Daemon
}

func (n *Node) stopForStart(t TB) {
	t.Helper()
	if n.Daemon != nil && !n.Daemon.Process.Exited() {
		n.Daemon.Stop(t)
	}
}

// afterStart looks at the end of the test at what the daemon has printed, and attaches the node's pods.
func (n *Node) afterStart(t TB) {
	t.Helper()
	d := n.Daemon
	t.Cleanup(func() {
		// With LAB_RACE=1 the daemon goes on after a race, and most labs end by killing it: nothing else would tell.
		if race := strings.Index(d.Process.Output(), "WARNING: DATA RACE"); race >= 0 {
			t.Errorf("penstockd on %s:\n%.4000s", n.Name, d.Process.Output()[race:])
		}
		if t.Failed() {
			t.Logf("penstockd on %s printed:\n%s", n.Name, lastLines(d.Process.Output(), 80))
		}
	})
	for _, p := range n.Pods {
		if err := p.attach(); err != nil {
			t.Fatalf("%v\n%s", err, lastLines(d.Process.Output(), 40))
		}
	}
}

// StartErr starts the daemon and waits until it is ready; it attaches no pods. The error of a daemon that
// refuses holds what it printed.
func (n *Node) StartErr(yaml ...string) (*Daemon, error) {
	if n.Role != Penstock {
		return nil, fmt.Errorf("lab: %s runs no penstockd", n.Name)
	}
	program, err := daemonProgram()
	if err != nil {
		return nil, err
	}
	if err := n.writeConfig(yaml...); err != nil {
		return nil, err
	}
	p, err := n.NS.Start(n.daemonCommand(program, n.configPath()))
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Node: n, Process: p, Socket: n.socket(), Config: n.configPath(),
		Debug: netip.MustParseAddrPort("127.0.0.1:9474"), client: control.New(n.socket()),
	}
	n.Daemon = d
	if err := d.waitReady(startTimeout); err != nil {
		p.Kill()
		return d, fmt.Errorf("lab: penstockd on %s: %w\n%s", n.Name, err, lastLines(p.Output(), 60))
	}
	return d, nil
}

func (n *Node) daemonCommand(program, config string) *exec.Cmd {
	cmd := exec.Command(program, "--config", config)
	if n.Wrap != nil {
		cmd = n.Wrap(cmd)
	}
	return cmd
}

func (d *Daemon) waitReady(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for adopted := false; ; {
		if d.Process.Exited() {
			return fmt.Errorf("it ended with %v", d.Process.Wait(0))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		s, err := d.client.Status(ctx)
		cancel()
		if err == nil && s.Ready {
			return nil
		}
		if err == nil && s.Waiting > 0 && !adopted { // systemd does that as ExecStartPost
			if err := d.Node.adopt(); err != nil {
				return err
			}
			adopted = true
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fmt.Errorf("status says %q", s.Reason)
			}
			return fmt.Errorf("it is not ready after %v: %w", timeout, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Control is a client of the daemon's control API.
func (d *Daemon) Control() *control.Client { return d.client }

// Stop sends SIGTERM; the daemon must end with exit code 0 within ten seconds.
func (d *Daemon) Stop(t TB) {
	t.Helper()
	if err := d.stop(); err != nil {
		t.Errorf("%v\n%s", err, lastLines(d.Process.Output(), 40))
	}
}

func (d *Daemon) stop() error {
	if d.Process.Exited() {
		return fmt.Errorf("lab: penstockd on %s had ended before it was stopped: %v", d.Node.Name, d.Process.Wait(0))
	}
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("lab: stop penstockd on %s: %w", d.Node.Name, err)
	}
	err := d.Process.Wait(10 * time.Second)
	if errors.Is(err, ErrRunning) {
		d.Process.Signal(syscall.SIGQUIT) // its goroutines go into the output
		d.Process.Wait(2 * time.Second)
		d.Process.Kill()
	}
	if err != nil {
		return fmt.Errorf("lab: penstockd on %s after SIGTERM: %w", d.Node.Name, err)
	}
	return nil
}

// Kill ends the daemon with SIGKILL.
func (d *Daemon) Kill() { d.Process.Kill() }

// Cleanup runs penstockd --cleanup with the daemon's configuration.
func (d *Daemon) Cleanup(t TB) {
	t.Helper()
	program, err := daemonProgram()
	if err != nil {
		t.Fatalf("%v", err)
	}
	p, err := d.Node.NS.Start(exec.Command(program, "--config", d.Config, "--cleanup"))
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := p.Wait(10 * time.Second); err != nil {
		t.Errorf("lab: penstockd --cleanup on %s: %v\n%s", d.Node.Name, err, p.Output())
	}
}

// Rewrite writes a new configuration file and does not load it.
func (d *Daemon) Rewrite(t TB, yaml ...string) {
	t.Helper()
	if err := d.Node.writeConfig(yaml...); err != nil {
		t.Fatalf("%v", err)
	}
}

// Reload writes a new configuration file and loads it.
func (d *Daemon) Reload(t TB, yaml ...string) {
	t.Helper()
	if err := d.ReloadErr(yaml...); err != nil {
		t.Fatalf("lab: reload on %s: %v", d.Node.Name, err)
	}
}

// ReloadErr is Reload for files that the daemon must refuse.
func (d *Daemon) ReloadErr(yaml ...string) error {
	if err := d.Node.writeConfig(yaml...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := d.client.Reload(ctx)
	return err
}

// Status asks the daemon what it is and how it fares.
func (d *Daemon) Status(t TB) control.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := d.client.Status(ctx)
	if err != nil {
		t.Fatalf("lab: status on %s: %v", d.Node.Name, err)
	}
	return s
}

// CallControl speaks to the control socket without the client's types: for requests that the client would
// never make. It returns the HTTP status.
func (d *Daemon) CallControl(method, path string, in []byte, out any) (int, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
	}
	code, body, err := request(dial, method, "http://penstock"+path, in)
	if err == nil && out != nil {
		err = json.Unmarshal(body, out)
	}
	return code, err
}

// Get asks the debug listener, from inside the node's namespace.
func (d *Daemon) Get(path string) (code int, body []byte, err error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.Node.DialTCP(ctx, d.Debug) }
	return request(dial, http.MethodGet, "http://"+d.Debug.String()+path, nil)
}

func request(dial func(context.Context, string, string) (net.Conn, error), method, url string, in []byte) (int, []byte, error) {
	c := http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}
	r, err := http.NewRequest(method, url, bytes.NewReader(in))
	if err != nil {
		return 0, nil, err
	}
	a, err := c.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	return a.StatusCode, body, err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "    " + strings.Join(lines, "\n    ")
}
