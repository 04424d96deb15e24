package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// queued counts the deletes that wait for a node's daemon.
func queued(n *lab.Node) int {
	files, _ := filepath.Glob(filepath.Join(control.PendingDir(n.Daemon.Socket), "*.json"))
	return len(files)
}

// TestCNIDaemonDead: pods are deleted while the daemon is dead, and the daemon finishes that at its start; what lives goes on.
func TestCNIDaemonDead(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	veth, tun := a.AddPodByPlugin(t, lab.Veth), a.AddPodByPlugin(t, lab.TUN)
	goes := []*lab.Pod{a.AddPodByPlugin(t, lab.Veth), a.AddPodByPlugin(t, lab.TUN)}
	gone := []*lab.Pod{a.AddPodByPlugin(t, lab.Veth), a.AddPodByPlugin(t, lab.TUN)} // their namespaces vanish, DEL comes later
	a.Daemon.Kill()
	for _, p := range goes {
		p.Remove(t)
	}
	if n := queued(a); n != 2 {
		t.Errorf("%d deletes are queued, want 2", n)
	}
	for _, p := range gone {
		p.NS.Close()
	}
	a.Start(t) // and adopt
	for _, p := range []*lab.Pod{veth, tun} {
		reaches(t, far, p)
		reaches(t, p, far)
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
	if n := queued(a); n != 0 {
		t.Errorf("%d deletes are still queued", n)
	}
	pods, err := a.Daemon.Control().Pods(t.Context())
	if err != nil || len(pods) != 2 {
		t.Errorf("the daemon has %+v, %v", pods, err)
	}
	a.Daemon.Stop(t)
	a.Start(t)
	for _, p := range []*lab.Pod{veth, tun} {
		reaches(t, far, p)
		p.Remove(t)
	}
	nothingLeft(t, a)
	a.Daemon.AssertConserved(t)
}

// TestCNIDaemonStarts: ADD waits for a daemon that starts; one that hangs gets no more than its time.
func TestCNIDaemonStarts(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	a := l.Nodes[0]
	a.Start(t)
	a.Daemon.Stop(t)
	p := a.BarePod(t)
	result := make(chan error, 1)
	go func() {
		_, err := p.Plug(a.List(nil, lab.Conf{"type": "penstock"}))
		result <- err
	}()
	time.Sleep(300 * time.Millisecond) // not what is awaited: the daemon is to come late
	a.Start(t)
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := a.Ping(p.IP4); err != nil {
		t.Error(err)
	}

	c := newTool(t, a)
	c.configure(a.List(nil, lab.Conf{"type": "penstock"}))
	a.Daemon.Process.Signal(syscall.SIGSTOP)
	if _, err := c.run("status", nil); err == nil || !strings.Contains(err.Error(), "in time") { // within a second: TestCNISuiteHangs
		t.Errorf("STATUS of a daemon that hangs: %v", err)
	}
	// ADD and DEL wait beside each other.
	q, list, begin := a.BarePod(t), a.List(nil, lab.Conf{"type": "penstock"}), time.Now()
	go func() {
		_, err := q.Plug(list)
		result <- err
	}()
	p.Remove(t)
	if err := <-result; err == nil || !strings.Contains(err.Error(), "penstockd") {
		t.Errorf("ADD to a daemon that hangs: %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second { // within ten: TestCNISuiteDead
		t.Errorf("ADD gave up after %v", took)
	}
	a.Daemon.Process.Signal(syscall.SIGCONT)
	for end := time.Now().Add(patience); queued(a) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the daemon does not finish what was queued while it hung")
		}
	}
	nothingLeft(t, a)
}

// TestCNIParallel: 100 pods (200 with E2E_MATRIX=1) at once, 50 under way at a time; every address once; then all go again.
func TestCNIParallel(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 2})
	l.Nodes[0].Start(t)
	a := l.Nodes[0]
	count := 200
	switch {
	case testing.Short() || !matrix() && raced():
		count = 50
	case !matrix():
		count = 100
	}
	var pods []*lab.Pod
	for range count {
		pods = append(pods, a.BarePod(t))
	}
	each := func(do func(*lab.Pod) error) []time.Duration {
		var mu sync.Mutex
		var took []time.Duration
		var wg sync.WaitGroup
		slots := make(chan struct{}, 50)
		for _, p := range pods {
			wg.Add(1)
			slots <- struct{}{}
			go func() {
				defer func() { <-slots; wg.Done() }()
				begin := time.Now()
				err := do(p)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(begin))
				if err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		slices.Sort(took)
		return took
	}
	took := each(func(p *lab.Pod) error {
		attach := "veth"
		if p.Container[0]%2 == 0 {
			attach = "tun"
		}
		_, err := p.Plug(a.List(nil, lab.Conf{"type": "penstock", "attach": attach}))
		return err
	})
	t.Logf("%d ADDs, 50 at a time: median %v, p99 %v", len(took), took[len(took)/2], took[len(took)*99/100])
	owners := map[string]string{}
	for _, p := range pods {
		for _, v6 := range []bool{false, true} {
			x := p.Addr(v6).String()
			if other := owners[x]; other != "" {
				t.Errorf("%s was given to %s and %s", x, other, p.Name)
			}
			owners[x] = p.Name
		}
	}
	for i, p := range pods[:20] {
		if err := p.Ping(pods[(i+1)%len(pods)].IP4); err != nil {
			t.Error(err)
		}
	}
	each(func(p *lab.Pod) error { p.Unplug(t); return nil })
	nothingLeft(t, a)
	a.Daemon.AssertConserved(t)
}
