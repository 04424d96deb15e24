package cni

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/forwarder/control"
)

// ipamCalls are the verbs that the ipam plugin was called with since the last look.
func (w *world) ipamCalls() (verbs []string) {
	log := filepath.Join(w.bin, "ipam.log")
	b, _ := os.ReadFile(log)
	os.Remove(log)
	for line := range strings.Lines(string(b)) {
		verbs = append(verbs, strings.Fields(line)[0])
	}
	return verbs
}

// TestIPAMUndone: an ipam plugin is called with DEL also if its ADD has failed or was killed, and not for the addresses of a pod that was
// added before under the same key.
func TestIPAMUndone(t *testing.T) {
	w := newWorld(t)
	conf := map[string]any{"ipam": map[string]any{"type": "fakeipam"}}
	env := w.env
	given := `FAKE_IPAM={"cniVersion":"1.1.0","ips":[{"address":"10.244.1.77/24"}]}`
	refuses := `FAKE_IPAM={"cniVersion":"1.1.0","code":101,"msg":"duplicate"}`

	w.env = append(slices.Clone(env), refuses)
	w.refused(w.newPod(), w.add(w.newPod(), "1.1.0", conf), 101, "duplicate")
	if calls := w.ipamCalls(); !slices.Equal(calls, []string{"ADD", "DEL"}) {
		t.Errorf("refused: %v", calls)
	}
	w.env = append(slices.Clone(env), "FAKE_IPAM_HANGS=1")
	w.patience("300ms")
	if a := w.add(w.newPod(), "1.1.0", conf); a.code != types.ErrInternal || !strings.Contains(a.msg, "did not end in time") {
		t.Errorf("%d %s", a.code, a.msg)
	}
	if calls := w.ipamCalls(); !slices.Equal(calls, []string{"ADD", "DEL"}) {
		t.Errorf("killed: %v", calls)
	}

	w.env = append(slices.Clone(env), given)
	p := w.newPod()
	w.mustAdd(p, "1.1.0", conf)
	w.ipamCalls()
	elsewhere := w.newPod()
	elsewhere.id = p.id
	w.set(func() {
		w.errs["/v1/allocate"] = control.Errorf(control.Conflict, "it is there already with another network namespace: delete it first")
	})
	for _, answer := range []string{given, refuses} { // idempotent, or not
		w.env = append(slices.Clone(env), answer)
		if a := w.add(elsewhere, "1.1.0", conf); a.code == 0 {
			t.Error("a second pod of the same key")
		}
		if calls := w.ipamCalls(); !slices.Equal(calls, []string{"ADD"}) {
			t.Errorf("a running pod's address: %v", calls)
		}
	}
	if w.pods[control.PodKey{Container: p.id, Interface: "eth0"}] == nil {
		t.Error("the running pod is detached")
	}
}
