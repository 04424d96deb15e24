package cni

import (
	"strings"
	"testing"
)

// TestNulls: what is null in a list of a result is nothing, of whatever version.
func TestNulls(t *testing.T) {
	w := newWorld(t)
	for i, lists := range []string{
		`"ips":[null,{"version":"4","address":"10.244.1.77/24"}]`,
		`"ips":[{"version":"4","address":"10.244.1.77/24"}],"routes":[null]`,
		`"interfaces":[null],"ips":[{"version":"4","address":"10.244.1.77/24"}]`,
		`"IPs":[null,{"version":"4","address":"10.244.1.77/24"},null]`,
	} {
		for _, v := range turn(i) {
			p := w.newPod()
			env := w.env
			w.env = append(w.env, `FAKE_IPAM={"cniVersion":"`+v+`",`+lists+`}`)
			conf := map[string]any{"ipam": map[string]any{"type": "fakeipam"}}
			r := w.mustAdd(p, v, conf)
			w.env = env
			expect(t, r, "10.244.1.77/32", "ips", 0, "address")
			r["ips"] = append([]any{nil}, r["ips"].([]any)...)
			r["routes"] = append(r["routes"].([]any), nil)
			r["interfaces"] = append([]any{nil}, r["interfaces"].([]any)...)
			get(r, "ips", 1).(map[string]any)["interface"] = 2
			conf["prevResult"] = r
			if v != "0.3.1" {
				if a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, version: v, conf: conf}); a.code != 0 {
					t.Errorf("CHECK: %d %s", a.code, a.msg)
				}
			}
			if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, version: v, conf: conf}); a.code != 0 {
				t.Errorf("DEL: %d %s", a.code, a.msg)
			}
			w.clean(p)
		}
	}
	p := w.newPod()
	previous := w.bridged(p, "1.1.0", "10.244.1.66/32")
	previous["ips"] = append(previous["ips"].([]any), nil)
	previous["interfaces"] = append(previous["interfaces"].([]any), nil)
	w.mustAdd(p, "1.1.0", map[string]any{"prevResult": previous})
}

// TestPanics: an ADD that panics is undone as one that fails.
func TestPanics(t *testing.T) {
	w := newWorld(t)
	w.families = []int{4}
	w.env = append(w.env, "TEST_PANIC=1")
	p := w.newPod()
	cmd, finish := w.command(t.Context(), call{verb: "ADD", id: p.id, netns: p.path, conf: map[string]any{"routes": []any{map[string]any{"dst": "fd00:1::/64"}}}})
	err := cmd.start()
	if err == nil {
		err = cmd.Wait()
	}
	var a answer
	if finish(&a); err == nil || !strings.Contains(a.stderr, "panic: on purpose") {
		t.Fatalf("%v: %s %s", err, a.out, a.stderr)
	}
	w.clean(p)
}
