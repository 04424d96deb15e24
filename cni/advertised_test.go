package cni

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// uplink gives the node a device with a default route. As the kernel makes it, it takes router advertisements.
func (w *world) uplink() {
	w.node.Device("eth0")
	w.node.Up("eth0.peer")
	w.node.Up("eth0", "192.0.2.1/24")
	w.node.Route("default", "192.0.2.2")
	w.lives = map[string]bool{"eth0": true, "eth0.peer": true}
}

// An uplink that takes router advertisements goes on doing so when the node forwards; a bridge, or another plugin's pod, does not begin to, nor
// does a device that is yet to come.
func TestForwardingKeepsAdvertisements(t *testing.T) {
	w := newWorld(t)
	w.uplink()
	w.node.Device("other")
	w.mustAdd(w.newPod(), "1.1.0", w.conf(nil))
	w.node.Do(func() {
		for device, want := range map[string]string{"eth0": "2", "default": "1", "other": "1", "lo": "1"} {
			if have := readSysctl("ipv6/conf/" + device + "/accept_ra"); have != want {
				t.Errorf("accept_ra of %s is %s, want %s", device, have, want)
			}
		}
	})
}

// Where what the uplink has from a router would be lost, the node does not forward IPv6, and the pod is refused.
func TestForwardingWaitsForAdvertisements(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("needs the program unshare")
	}
	w := newWorld(t)
	w.uplink()
	p := w.newPod()
	cmd, finish := w.command(t.Context(), call{verb: "ADD", id: p.id, netns: p.path, conf: w.conf(nil)})
	cmd.Args = []string{"unshare", "-m", "sh", "-ec", `mount --bind $1 $1; mount -o remount,bind,ro $1; exec $0`, cmd.Path, "/proc/sys/net/ipv6/conf/eth0/accept_ra"}
	cmd.Path = unshare
	if err := cmd.start(); err != nil {
		t.Fatal(err)
	}
	if cmd.Wait() == nil {
		t.Error("ADD did not fail")
	}
	var a answer
	finish(&a)
	var e types.Error
	if err := json.Unmarshal(a.out, &e); err != nil {
		t.Fatalf("%v: %s %s", err, a.out, a.stderr)
	}
	a.code, a.msg = e.Code, e.Error()
	w.refused(p, a, types.ErrIOFailure, "the node would lose what eth0 has from router advertisements")
	w.node.Do(func() {
		if have := readSysctl("ipv6/conf/all/forwarding"); have != "0" {
			t.Errorf("forwarding is %s", have)
		}
	})
}
