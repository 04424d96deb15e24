package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestDeleteAnyway: DEL succeeds whatever is missing, and what the daemon could not be told waits for it on disk.
func TestDeleteAnyway(t *testing.T) {
	t.Parallel() // beside TestWaits, which has little to do
	w := newWorld(t)
	for j, attach := range []string{"veth", "tun", "routed"} {
		for i, test := range []struct {
			name    string
			spoil   func(p *pod, c *call)
			pending bool
		}{
			{"unknown pod", func(_ *pod, c *call) { c.id = "never-seen" }, false},
			{"no netns", func(_ *pod, c *call) { c.netns = "" }, false},
			{"netns gone", func(_ *pod, c *call) { c.netns = "/run/netns/gone" }, false},
			{"netns is a file", func(_ *pod, c *call) { c.netns = "/etc/hostname" }, false},
			{"netns is the host's", func(_ *pod, c *call) { c.netns = "/proc/self/ns/net" }, false},
			{"no prevResult", func(_ *pod, c *call) { delete(c.conf, "prevResult") }, false},
			{"nothing but the name", func(_ *pod, c *call) { c.conf = map[string]any{"socket": w.socket} }, false},
			{"another attach", func(_ *pod, c *call) { c.conf["attach"] = "nonsense" }, false},
			{"bad values", func(_ *pod, c *call) { c.conf["mtu"] = 3; c.conf["routes"] = []any{nil} }, false},
			{"dead daemon", func(*pod, *call) { w.stop() }, true},
			{"daemon that hangs", func(*pod, *call) { w.patience("200ms"); w.set(func() { w.hang["/v1/detach"] = true }) }, true},
			{"daemon that fails", func(*pod, *call) {
				w.set(func() { w.errs["/v1/detach"] = control.Errorf(control.Internal, "the disk is on fire") })
			}, true},
		} {
			for _, v := range turn(i + j) {
				t.Run(fmt.Sprint(attach, "/", v, "/", test.name), func(t *testing.T) {
					w.t = t
					w.patience("20s")
					p := w.newPod()
					conf := map[string]any{"attach": attach}
					if attach == "routed" {
						conf["prevResult"] = w.bridged(p, v, "10.244.1.70/32")
					}
					r := w.mustAdd(p, v, conf)
					conf["prevResult"] = r
					if v == "0.3.1" {
						delete(conf, "prevResult")
					}
					c := call{verb: "DEL", id: p.id, netns: p.path, version: v, conf: conf}
					test.spoil(p, &c)
					for range 2 {
						if a := w.run(c); a.code != 0 {
							t.Errorf("%d %s", a.code, a.msg)
						}
					}
					waiting, err := control.Pending(w.socket)
					if err != nil || (len(waiting) == 1) != test.pending {
						t.Errorf("queued: %v, %v", waiting, err)
					}
					if test.pending {
						if q := waiting[control.DeviceName(p.id, "eth0")]; q.Container != p.id || q.Interface != "eth0" {
							t.Errorf("queued: %+v", waiting)
						}
						control.RemovePending(w.socket, control.DeviceName(p.id, "eth0"))
						w.stop()
						w.start()
						w.patience("20s")
						w.set(func() { delete(w.pods, control.PodKey{Container: p.id, Interface: "eth0"}) })
					}
					// What DEL could not reach is in the pod's namespace; the last one is as it should be.
					c = call{verb: "DEL", id: p.id, netns: p.path, version: v, conf: map[string]any{"attach": attach}}
					if a := w.run(c); a.code != 0 {
						t.Errorf("%d %s", a.code, a.msg)
					}
					if attach == "routed" {
						p.Do(func() {
							if l, err := netlink.LinkByName("eth0"); err == nil {
								netlink.LinkDel(l)
							}
						})
					}
					w.clean(p)
				})
			}
		}
	}
}

// TestForeignDevices: DEL takes away nothing that the plugin has not made.
func TestForeignDevices(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	device := control.DeviceName(p.id, "eth0")
	w.node.Do(func() {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device}}); err != nil {
			t.Fatal(err)
		}
	})
	p.Do(func() {
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TUN}); err != nil {
			t.Fatal(err)
		}
	})
	if a := w.run(call{verb: "DEL", id: p.id, netns: p.path}); a.code != 0 {
		t.Errorf("%d %s", a.code, a.msg)
	}
	w.node.Do(func() {
		if _, err := netlink.LinkByName(device); err != nil {
			t.Errorf("somebody's device: %v", err)
		}
	})
	p.Do(func() {
		if _, err := netlink.LinkByName("eth0"); err != nil {
			t.Errorf("somebody's TUN: %v", err)
		}
	})
	// And ADD says that the name is taken.
	w.node.Do(func() {})
	q := w.newPod()
	w.node.Do(func() {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: control.DeviceName(q.id, "eth0")}}); err != nil {
			t.Fatal(err)
		}
	})
	if a := w.add(q, "1.1.0", nil); a.code == 0 || !strings.Contains(a.msg, "taken") {
		t.Errorf("%d %s", a.code, a.msg)
	}
}

// TestKilled: an ADD that is killed where it talks to the daemon leaves only what one DEL takes away, and what the next ADD copes
// with.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	for _, attach := range []string{"veth", "tun"} {
		for _, path := range []string{"/v1/allocate", "/v1/attach"} {
			for _, then := range []string{"DEL", "ADD"} {
				t.Run(attach+path+"/"+then, func(t *testing.T) {
					w.t = t
					p := w.newPod()
					conf := map[string]any{"attach": attach}
					w.set(func() { w.hang[path] = true })
					before := w.called(path)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					cmd, _ := w.command(ctx, call{verb: "ADD", id: p.id, netns: p.path, conf: conf})
					if err := cmd.start(); err != nil {
						t.Fatal(err)
					}
					for end := time.Now().Add(30 * time.Second); w.called(path) == before && time.Now().Before(end); {
						time.Sleep(time.Millisecond)
					}
					cancel() // SIGKILL
					cmd.Wait()
					w.set(func() { delete(w.hang, path) })
					if then == "ADD" && attach == "veth" {
						// The pod's interface is there, so a runtime that forgets DEL is told to call it.
						if a := w.add(p, "1.1.0", conf); path == "/v1/allocate" && a.code != 0 {
							t.Errorf("ADD again: %d %s", a.code, a.msg)
						}
					}
					if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, conf: conf}); a.code != 0 {
						t.Errorf("%d %s", a.code, a.msg)
					}
					w.clean(p)
				})
			}
		}
	}
}

// TestHalfMovedTUN: a TUN that the daemon has made, for who attaches by hand, before its move into the pod and before its new name.
func TestHalfMovedTUN(t *testing.T) {
	w := newWorld(t)
	for _, where := range []string{"node", "pod"} {
		p := w.newPod()
		ns := w.node
		if where == "pod" {
			ns = p.NS
		}
		ns.Do(func() {
			if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: control.DeviceName(p.id, "eth0")}, Mode: netlink.TUNTAP_MODE_TUN}); err != nil {
				t.Fatal(err)
			}
			if where == "node" { // whatever mark it has
				l, _ := netlink.LinkByName(control.DeviceName(p.id, "eth0"))
				netlink.LinkSetAlias(l, plainAlias)
			}
		})
		if a := w.run(call{verb: "DEL", id: p.id, netns: p.path}); a.code != 0 {
			t.Errorf("%d %s", a.code, a.msg)
		}
		w.clean(p)
	}
}

// TestCheck: what is not as ADD left it is named.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name  string
		spoil func(p *pod, l netlink.Link) error
		says  string
	}{
		{"interface", func(_ *pod, l netlink.Link) error { return netlink.LinkDel(l) }, "has no eth0"},
		{"down", func(_ *pod, l netlink.Link) error { return netlink.LinkSetDown(l) }, "eth0 is down"},
		{"address", func(_ *pod, l netlink.Link) error {
			a, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			return netlink.AddrDel(l, &a[0])
		}, "lost the address 10.244.1."},
		{"route", func(_ *pod, l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netOf(all4)})
		}, "lost the route to 0.0.0.0/0"},
		{"daemon", func(p *pod, _ netlink.Link) error {
			w.set(func() { delete(w.pods, control.PodKey{Container: p.id, Interface: "eth0"}) })
			return nil
		}, "is not known"},
	} {
		for _, attach := range []string{"veth", "tun"} {
			t.Run(test.name+"/"+attach, func(t *testing.T) {
				w.t = t
				p := w.newPod()
				conf := map[string]any{"attach": attach}
				conf["prevResult"] = w.mustAdd(p, "1.1.0", conf)
				p.Do(func() {
					l, err := netlink.LinkByName("eth0")
					if err == nil {
						err = test.spoil(p, l)
					}
					if err != nil {
						t.Fatal(err)
					}
				})
				a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, conf: conf})
				if a.code == 0 || !strings.Contains(a.msg, test.says) {
					t.Errorf("%d %s", a.code, a.msg)
				}
			})
		}
	}
	p := w.newPod()
	r := w.mustAdd(p, "1.1.0", map[string]any{"runtimeConfig": map[string]any{"mac": "02:aa:00:00:00:01"}})
	for mac, says := range map[string]string{"02:AA:00:00:00:01": "", "02:AA:00:00:00:02": "has the MAC 02:aa:00:00:00:01 and not 02:AA:00:00:00:02"} {
		get(r, "interfaces", 1).(map[string]any)["mac"] = mac
		a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, conf: map[string]any{"attach": "veth", "prevResult": r}})
		if (a.code == 0) != (says == "") || !strings.Contains(a.msg, says) {
			t.Errorf("%s: %d %s", mac, a.code, a.msg)
		}
	}
	if a := w.run(call{verb: "CHECK", id: p.id, netns: p.path}); a.code != 7 {
		t.Errorf("without prevResult: %d %s", a.code, a.msg)
	}
}

// TestGC: what is listed stays, the rest goes; and without a daemon it says so.
func TestGC(t *testing.T) {
	w := newWorld(t)
	stays, goes := w.newPod(), w.newPod()
	w.mustAdd(stays, "1.1.0", nil)
	w.mustAdd(goes, "1.1.0", nil)
	valid := []any{map[string]any{"containerID": stays.id, "ifname": "eth0"}}
	const old, current = "cni.dev/attachments", "cni.dev/valid-attachments"
	for _, conf := range []map[string]any{{current: valid}, {old: valid}, {current: valid, old: valid}} { // the last is libcni's
		if a := w.run(call{verb: "GC", conf: conf}); a.code != 0 {
			t.Errorf("%d %s", a.code, a.msg)
		}
	}
	var q control.GCRequest
	w.last("/v1/gc", &q)
	if q.Network != "penstock" || !slices.Equal(q.Valid, []control.PodKey{{Container: stays.id, Interface: "eth0"}}) {
		t.Errorf("asked for %+v", q)
	}
	if len(w.pods) != 1 {
		t.Errorf("left: %v", w.pods)
	}
	for i := range 5000 { // more than a node has
		valid = append(valid, map[string]any{"containerID": fmt.Sprintf("%064d", i), "ifname": "eth0"})
	}
	if a := w.run(call{verb: "GC", conf: map[string]any{current: valid, old: valid}}); a.code != 0 {
		t.Errorf("many: %d %s", a.code, a.msg)
	}
	if w.last("/v1/gc", &q); len(q.Valid) != len(valid) || len(w.pods) != 1 {
		t.Errorf("%d are valid, %d were said to be; left: %v", len(valid), len(q.Valid), w.pods)
	}
	w.stop()
	if a := w.run(call{verb: "GC", conf: map[string]any{}}); a.code != 11 {
		t.Errorf("without a daemon: %d %s", a.code, a.msg)
	}
}

func TestReleases(t *testing.T) {
	for release, want := range map[string]bool{"6.18.44-fc": true, "6.2.0": true, "6.2-rc1": true, "6.1.99": false, "5.10.0-8-amd64": false, "7.0": true, "10.0.1": true, "x": false} {
		if releaseSince(release, 6, 2) != want {
			t.Errorf("%s since 6.2: %v", release, !want)
		}
	}
}

// TestTypesOfPending: the queue is what the daemon reads.
func TestTypesOfPending(t *testing.T) {
	socket := t.TempDir() + "/p.sock"
	if err := control.WritePending(socket, control.DetachRequest{Container: "c", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(control.PendingPath(socket, "c", "eth0"))
	var q control.DetachRequest
	if err != nil || json.Unmarshal(b, &q) != nil || q.Container != "c" {
		t.Errorf("%s, %v", b, err)
	}
}

// TestDeleteBesideWhatIsNoSocket: a delete waits beside the socket that was named, whatever stands there meanwhile.
func TestDeleteBesideWhatIsNoSocket(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{filepath.Join(t.TempDir(), "x.sock"), filepath.Join(t.TempDir(), "gone", "by", "boot.sock")} {
		if filepath.Base(path) == "x.sock" {
			os.Mkdir(path, 0o700)
		}
		p := w.newPod()
		a := w.run(call{verb: "DEL", id: p.id, netns: p.path, conf: map[string]any{"socket": path}})
		if waiting, err := control.Pending(path); a.code != 0 || err != nil || len(waiting) != 1 {
			t.Errorf("%s: %d %s; %v, %v", path, a.code, a.msg, waiting, err)
		}
	}
}
