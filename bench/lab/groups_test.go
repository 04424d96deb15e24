package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGroups puts a process into a group, and finds what a killed lab left.
func TestGroups(t *testing.T) {
	Require(t)
	g, err := NewGroups()
	if err != nil {
		t.Skipf("this machine has no scheduling groups: %v", err)
	}
	stale := filepath.Join(g.root, ours+"999999999.daemon") // beyond every pid_max
	if err := os.Mkdir(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(stale) })
	SweepGroups()
	if _, err := os.Stat(stale); err == nil {
		t.Errorf("%s is from a process that is gone, and stays", stale)
	}

	n, err := newNS("grouped")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"="+helperNap)
	p, err := n.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); g.Close() })
	for _, weight := range []int{100, 1000} { // a second time changes the weight alone
		if err := g.Put(p, "daemon", weight); err != nil {
			t.Fatal(err)
		}
		got := strings.TrimSpace(string(mustRead(t, filepath.Join(g.made[0], g.file))))
		if want := fmt.Sprint(weight * g.scale / 100); got != want {
			t.Errorf("weight %d: %s is %s, want %s", weight, g.file, got, want)
		}
	}
	in := string(mustRead(t, fmt.Sprintf("/proc/%d/cgroup", p.Pid())))
	if want := "/" + filepath.Base(g.made[0]) + "\n"; !strings.Contains(in, want) {
		t.Errorf("the process is in\n%swant %s", in, want)
	}
	made := g.made[0]
	p.Kill()
	if left := g.Close(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(made); err == nil {
		t.Errorf("%s is left", made)
	}
}

// TestGroupsUnder: each layout of the cgroup file system, and what is missing.
func TestGroupsUnder(t *testing.T) {
	for _, c := range []struct {
		name, file, content string
		want, err           string
	}{
		{"version 2", "cgroup.subtree_control", "cpuset cpu io memory\n", "cpu.weight", ""},
		{"version 2 without cpu", "cgroup.subtree_control", "cpuset memory\n", "", "echo +cpu"},
		{"version 2 that has none", "cgroup.subtree_control", "\n", "", "has no cpu controller"},
		{"version 1", "cpu/cpu.shares", "1024\n", "cpu.shares", ""},
		{"version 1, joined", "cpu,cpuacct/cpu.shares", "1024\n", "cpu.shares", ""},
		{"nothing", "memory/x", "", "", "mount cgroup2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(c.file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, c.file), []byte(c.content), 0o644); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(c.name, "version 2") {
				offered := "cpuset cpu io\n"
				if strings.Contains(c.name, "none") {
					offered = "cpuset io\n"
				}
				if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte(offered), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			g, err := groupsUnder(root)
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
			case err != nil:
				t.Error(err)
			case g.file != c.want:
				t.Errorf("weights go to %s, want %s", g.file, c.want)
			}
		})
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
