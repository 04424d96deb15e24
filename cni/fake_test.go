package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// fake is a daemon with a memory and without packets.
type fake struct {
	mu       sync.Mutex
	socket   string
	node     *nstest.NS
	calls    []string
	pods     map[control.PodKey]*control.Pod
	requests map[string]json.RawMessage // the last of each path
	errs     map[string]*control.Error  // answered by path
	hang     map[string]bool            // by path: never answered
	notReady string
	state    *control.StateTrouble
	mtu      int
	families []int
	server   *httptest.Server
	quit     chan struct{}
	queues   map[control.PodKey]int // of TUNs
}

func (f *fake) start() {
	f.mu.Lock() // a hand-over may outlive the server that it came to
	f.errs, f.hang, f.requests, f.quit = map[string]*control.Error{}, map[string]bool{}, map[string]json.RawMessage{}, make(chan struct{})
	f.queues = map[control.PodKey]int{}
	f.mu.Unlock()
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		panic(err)
	}
	f.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	f.server.Start()
}

func (f *fake) stop() {
	if f.server != nil {
		close(f.quit)
		f.server.Close()
		f.server = nil
		for _, fd := range f.queues {
			unix.Close(fd)
		}
	}
}

func (f *fake) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body := new(bytes.Buffer)
	body.ReadFrom(r.Body)
	f.mu.Lock()
	f.calls = append(f.calls, r.URL.Path)
	f.requests[r.URL.Path] = body.Bytes()
	hang, e := f.hang[r.URL.Path], f.errs[r.URL.Path]
	f.mu.Unlock()
	if hang {
		select {
		case <-f.quit:
		case <-r.Context().Done():
		}
		return
	}
	if r.URL.Path == control.AdoptPath {
		f.serveQueue(rw)
		return
	}
	var answer any = struct{}{}
	err := error(nil)
	if e != nil {
		err = e
	} else {
		answer, err = f.answer(r.URL.Path, body.Bytes())
	}
	rw.Header().Set("Content-Type", "application/json")
	if err != nil {
		rw.WriteHeader(http.StatusConflict)
		answer = refusal(err)
	}
	json.NewEncoder(rw).Encode(answer)
}

func refusal(err error) any {
	var e *control.Error
	if !errors.As(err, &e) {
		e = control.Errorf(control.Internal, "%v", err)
	}
	return control.Envelope{Error: e}
}

var (
	fakeCIDR4 = netip.MustParsePrefix("10.244.1.0/24")
	fakeCIDR6 = netip.MustParsePrefix("fd00:10:244:1::/64")
)

func (f *fake) answer(path string, body []byte) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	strict := func(v any) error {
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		return d.Decode(v)
	}
	switch path {
	case "/v1/status":
		return control.Status{Node: "node-a", Ready: f.notReady == "", Reason: f.notReady, State: f.state, MTU: f.mtu, Device: "penstock0"}, nil
	case "/v1/allocate":
		var q control.AllocateRequest
		if err := strict(&q); err != nil {
			return nil, err
		}
		return f.allocate(q)
	case "/v1/attach":
		var q control.AttachRequest
		if err := strict(&q); err != nil {
			return nil, err
		}
		p := f.pods[control.PodKey{Container: q.Container, Interface: q.Interface}]
		if p == nil || !slices.Equal(p.Addresses, q.Addresses) {
			return nil, control.Errorf(control.Conflict, "not what was reserved")
		}
		if err := f.device(q); err != nil {
			return nil, err
		}
		p.Phase, p.MAC, p.Bandwidth = control.PhaseAttached, q.MAC, q.Bandwidth
		port := control.Attached{Port: control.Port{Container: q.Container, Interface: q.Interface, Addresses: q.Addresses, MTU: q.MTU}}
		if q.Attach == control.AttachTUN && q.Bandwidth != nil {
			port.QueueLen = 37
		}
		return port, nil
	case "/v1/detach":
		var q control.DetachRequest
		if err := strict(&q); err != nil {
			return nil, err
		}
		delete(f.pods, control.PodKey{Container: q.Container, Interface: q.Interface})
		f.dropQueue(control.PodKey{Container: q.Container, Interface: q.Interface})
		return struct{}{}, nil
	case "/v1/check":
		var q control.CheckRequest
		if err := strict(&q); err != nil {
			return nil, err
		}
		p := f.pods[control.PodKey{Container: q.Container, Interface: q.Interface}]
		switch {
		case p == nil:
			return nil, control.Errorf(control.NotFound, "%s/%s is not known", q.Container, q.Interface)
		case p.Phase != control.PhaseAttached || p.Attach != q.Attach || !slices.Equal(p.Addresses, q.Addresses):
			return nil, control.Errorf(control.Conflict, "%+v is not %+v", q, p)
		}
		return control.Port{}, nil
	case "/v1/pods":
		list := []control.Pod{}
		for _, p := range f.pods {
			list = append(list, *p)
		}
		return map[string]any{"pods": list}, nil
	case "/v1/gc":
		var q control.GCRequest
		if err := strict(&q); err != nil {
			return nil, err
		}
		r := control.GCResult{}
		for k, p := range f.pods {
			if p.Network == q.Network && !slices.Contains(q.Valid, k) {
				delete(f.pods, k)
				f.dropQueue(k)
				r.Removed = append(r.Removed, k)
			}
		}
		return r, nil
	}
	return nil, control.Errorf(control.NotFound, "no %s", path)
}

func (f *fake) allocate(q control.AllocateRequest) (any, error) {
	key := control.PodKey{Container: q.Container, Interface: q.Interface}
	a := control.Allocation{GatewayMAC: "ee:ee:ee:ee:ee:ee", MTU: f.mtu, NodeMTU: f.mtu, Device: control.DeviceName(q.Container, q.Interface), Phase: control.PhaseReserved}
	if q.MTU != 0 {
		a.MTU = q.MTU
	}
	if p := f.pods[key]; p != nil {
		a.Addresses, a.Phase = p.Addresses, p.Phase
		return a, nil
	}
	want := append(slices.Clone(q.Requested), q.Addresses...)
	for _, x := range want {
		if !fakeCIDR4.Contains(x) && !fakeCIDR6.Contains(x) {
			return nil, control.Errorf(control.Unsupported, "address %s lies in none of this node's podCIDRs", x)
		}
		for k, p := range f.pods {
			if slices.Contains(p.Addresses, x) {
				return nil, control.Errorf(control.Conflict, "address %s is in use by %s", x, k)
			}
		}
	}
	for _, family := range f.families {
		has := slices.ContainsFunc(want, func(x netip.Addr) bool { return x.Is4() == (family == 4) })
		if has || len(q.Addresses) > 0 || len(q.Families) > 0 && !slices.Contains(q.Families, family) {
			continue
		}
		x := fakeCIDR4.Addr()
		if family == 6 {
			x = fakeCIDR6.Addr()
		}
		for range len(f.pods) + 2 {
			x = x.Next()
		}
		want = append(want, x)
	}
	slices.SortFunc(want, netip.Addr.Compare)
	a.Addresses = want
	f.pods[key] = &control.Pod{Container: q.Container, Interface: q.Interface, Network: q.Network, Owner: q.Owner, Attach: q.Attach, Addresses: want, Phase: control.PhaseReserved, NetnsID: q.NetnsID}
	return a, nil
}

// device looks for the veth, in the node's namespace.
func (f *fake) device(q control.AttachRequest) (err error) {
	if q.Attach == control.AttachVeth {
		f.node.Do(func() { _, err = netlink.LinkByName(q.Device) })
	}
	return err
}

// serveQueue is an attachment by a queue (forwarder/control/adopt.go). It counts as one by /v1/attach. The device lasts, as the real
// daemon has it, until its pod is detached.
func (f *fake) serveQueue(rw http.ResponseWriter) {
	c, _, err := rw.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + control.AdoptProtocol + "\r\n\r\n"))
	body, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := c.(*net.UnixConn).ReadMsgUnix(body, oob)
	if err != nil {
		return
	}
	messages, _ := unix.ParseSocketControlMessage(oob[:k])
	fds, err := unix.ParseUnixRights(&messages[0])
	var m struct{ Attach json.RawMessage }
	if err == nil {
		err = json.Unmarshal(body[:n], &m)
	}
	const path = "/v1/attach"
	f.mu.Lock()
	f.calls = append(f.calls, path)
	f.requests[path] = m.Attach
	hang, e, quit := f.hang[path], f.errs[path], f.quit
	f.mu.Unlock()
	if hang { // a daemon that dies over it
		<-quit
		unix.Close(fds[0])
		return
	}
	var answer any
	if err == nil && e != nil {
		err = e
	} else if err == nil {
		answer, err = f.answer(path, m.Attach)
	}
	if err != nil {
		unix.Close(fds[0])
		answer = refusal(err)
	} else {
		unix.IoctlSetInt(fds[0], unix.TUNSETPERSIST, 1)
		var q control.AttachRequest
		json.Unmarshal(m.Attach, &q)
		f.set(func() { f.queues[control.PodKey{Container: q.Container, Interface: q.Interface}] = fds[0] })
	}
	json.NewEncoder(c).Encode(answer)
}

// dropQueue lets a detached pod's TUN go.
func (f *fake) dropQueue(k control.PodKey) {
	if fd, ok := f.queues[k]; ok {
		unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
		unix.Close(fd)
		delete(f.queues, k)
	}
}

func (f *fake) called(path string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == path {
			n++
		}
	}
	return n
}

func (f *fake) last(path string, v any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.Unmarshal(f.requests[path], v); err != nil {
		panic(err)
	}
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}
