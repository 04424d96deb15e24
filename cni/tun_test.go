package cni

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/cni/adopt"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestTUNMadeInThePod: the TUN is the pod's from the start and passes through no other namespace, may hold as many packets as the
// daemon says, and lasts; one that is there already is left alone.
func TestTUNMadeInThePod(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	conf := map[string]any{"attach": "tun", "mtu": 1400, "runtimeConfig": map[string]any{"bandwidth": map[string]any{"egressRate": 1000000, "egressBurst": 2000000}}}
	changes, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	defer close(done)
	w.node.Do(func() {
		if err := netlink.LinkSubscribe(changes, done); err != nil {
			t.Fatal(err)
		}
	})
	w.mustAdd(p, "1.1.0", conf)
	select {
	case c := <-changes:
		t.Errorf("on the node %s was changed", c.Link.Attrs().Name)
	default:
	}
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Attrs()
		tun, ok := l.(*netlink.Tuntap)
		if !ok || tun.NonPersist || at.TxQLen != 37 || at.MTU != 1400 || at.Alias != tunAlias(control.DeviceName(p.id, "eth0")) || at.GSOMaxSize != maxSuperframe || at.GSOIPv4MaxSize != maxSuperframe && kernelSince(6, 3) {
			t.Errorf("%+v, %+v", tun, at)
		}
	})
	if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, conf: conf}); a.code != 0 {
		t.Errorf("DEL: %s", a.msg)
	}
	w.clean(p)

	p = w.newPod()
	p.Do(func() {
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TUN}); err != nil {
			t.Fatal(err)
		}
	})
	if a := w.add(p, "1.1.0", conf); a.code != types.ErrInvalidNetworkConfig || !strings.Contains(a.msg, "exists already") {
		t.Errorf("%d %s", a.code, a.msg)
	}
	p.Do(func() {
		if _, err := netlink.LinkByName("eth0"); err != nil {
			t.Errorf("somebody's TUN: %v", err)
		}
		if _, err := adopt.OpenQueue("eth0", true); !errors.Is(err, unix.EBUSY) { // one that came behind the look
			t.Errorf("made over somebody's TUN: %v", err)
		}
	})
}

// TestTUNAnswerLost: the daemon dies over the attachment by a queue; its successor is asked again.
func TestTUNAnswerLost(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	w.set(func() { w.hang["/v1/attach"] = true })
	added := make(chan answer)
	go func() { added <- w.add(p, "1.1.0", map[string]any{"attach": "tun"}) }()
	for end := time.Now().Add(30 * time.Second); w.called("/v1/attach") == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	w.stop()
	w.start()
	if a := <-added; a.code != 0 {
		t.Errorf("%d %s", a.code, a.msg)
	}
	w.inside(p, "tun")
}
