package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A test of what kill -9 leaves needs a process to kill: this test binary, started again with one of these.
const (
	helperVar = "LAB_TEST_HELPER"
	helperLab = "lab"   // builds a namespace that is tied to one of the parent's, and starts a daemon in it
	helperNap = "sleep" // is that daemon
)

func TestMain(m *testing.M) {
	switch os.Getenv(helperVar) {
	case helperLab:
		helper()
	case helperNap:
		time.Sleep(time.Hour)
	default:
		os.Exit(m.Run())
	}
}

// helper makes a veth pair from a namespace of its own into the one named by the environment, starts a
// process inside, prints its id and waits to be killed.
func helper() {
	die := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	f, err := os.Open(os.Getenv("LAB_TEST_NS"))
	die(err)
	parent := &NS{Name: "parent", fd: int(f.Fd())}
	n, err := newNS("victim")
	die(err)
	die(vethPair(n, "eth0", borrowed(parent), "probe", 1500))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"="+helperNap)
	p, err := n.Start(cmd)
	die(err)
	fmt.Println(p.Pid())
	time.Sleep(time.Hour)
}

// borrowed gives a borrowed namespace the netlink handle that newNS would have made.
func borrowed(n *NS) *NS {
	h, err := handleAt(n.fd)
	if err != nil {
		panic(err)
	}
	n.route = h
	return n
}

// TestKillLeavesNothing: after SIGKILL the daemon dies and the namespace goes, and with it its end of a veth
// pair whose other end this process can see.
func TestKillLeavesNothing(t *testing.T) {
	Require(t)
	n := NewNS(t, "witness")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"="+helperLab, fmt.Sprintf("LAB_TEST_NS=/proc/%d/fd/%d", os.Getpid(), n.FD()))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	b := make([]byte, 1000)
	size, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:size])))
	if err != nil {
		t.Fatalf("the helper failed: %s", b[:size])
	}
	if !slices.Contains(n.LinkNames(), "probe") {
		t.Fatal("the helper's veth is not there")
	}
	cmd.Process.Kill()
	cmd.Wait()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		running := syscall.Kill(pid, 0) == nil && !zombie(pid)
		tied := slices.Contains(n.LinkNames(), "probe")
		if !running && !tied {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after kill -9: daemon runs %v, namespace lives %v", running, tied)
		}
	}
}

// zombie: whoever adopts orphans here may be slow to reap them.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestCloseLeavesNothing: a lab that was closed in order holds no descriptor, thread, process or file.
func TestCloseLeavesNothing(t *testing.T) {
	Require(t)
	var dir string
	t.Run("lab", func(t *testing.T) {
		l := New(t, Config{Roles: []Role{FlannelUDP, FlannelUDP, GopacketIPIP, KernelVXLAN}, Nodes: 4, Outside: true})
		dir = l.dir
		for _, n := range l.Nodes {
			n.AddPod(t, Veth)
		}
		p := l.Nodes[0].AddPod(t, Veth)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), helperVar+"="+helperNap)
		if _, err := p.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := p.Do(func() error { return p.Do(func() error { return nil }) }); err != nil {
			t.Error(err)
		}
		p.Remove(t)
		if len(leftovers()) == 0 {
			t.Error("a running lab is not noticed")
		}
	})
	if left := Leftovers(); len(left) > 0 {
		t.Errorf("left: %s", strings.Join(left, "; "))
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

// TestStaleDirectories: what a killed lab could not remove goes with the next one.
func TestStaleDirectories(t *testing.T) {
	stale := filepath.Join(os.TempDir(), ours+"999999999.test") // beyond every pid_max
	if err := os.MkdirAll(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", stale, err)
	}
}
