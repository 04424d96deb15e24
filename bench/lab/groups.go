package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Groups are scheduling groups (cgroups with the cpu controller) beside each other, as systemd makes one for a service and a kubelet one for the
// pods: the kernel shares the cores among them by their weights first, and then among the threads of each (cgroups(7), sched(7)). A kubelet gives
// the pods' weight by the node's cores (cpu.shares of 1024 for each; of cpu.weight some 39, by the conversion that most versions have).
type Groups struct {
	root  string // where the cpu controller is
	file  string // what takes a weight
	scale int    // its value for a weight of 100
	made  []string
}

// PodsWeight is a group's weight if nobody sets one (systemd.resource-control(5), CPUWeight=).
const PodsWeight = 100

// groupsUnder finds the cpu controller below root, which is /sys/fs/cgroup.
func groupsUnder(root string) (*Groups, error) {
	has := func(file string) bool {
		b, _ := os.ReadFile(filepath.Join(root, file))
		return slices.Contains(strings.Fields(string(b)), "cpu")
	}
	if _, err := os.Stat(filepath.Join(root, "cgroup.subtree_control")); err == nil {
		switch {
		case !has("cgroup.controllers"):
			return nil, fmt.Errorf("lab: this kernel or container has no cpu controller in %s/cgroup.controllers", root)
		case !has("cgroup.subtree_control"):
			return nil, fmt.Errorf("lab: the cpu controller is not on: echo +cpu > %s/cgroup.subtree_control", root)
		}
		return &Groups{root: root, file: "cpu.weight", scale: 100}, nil
	}
	for _, name := range []string{"cpu", "cpu,cpuacct"} { // version 1
		dir := filepath.Join(root, name)
		if _, err := os.Stat(filepath.Join(dir, "cpu.shares")); err == nil {
			return &Groups{root: dir, file: "cpu.shares", scale: 1024}, nil
		}
	}
	return nil, fmt.Errorf("lab: no cgroup with the cpu controller under %s: mount cgroup2 there", root)
}

// NewGroups tells whether groups can be made here.
func NewGroups() (*Groups, error) {
	g, err := groupsUnder("/sys/fs/cgroup")
	if err != nil {
		return nil, err
	}
	try := g.path("try")
	if err := os.Mkdir(try, 0o755); err != nil {
		return nil, fmt.Errorf("lab: no scheduling group can be made: %w", err)
	}
	return g, syscall.Rmdir(try)
}

func (g *Groups) path(name string) string {
	return filepath.Join(g.root, fmt.Sprintf("%s%d.%s", ours, os.Getpid(), name))
}

// SweepGroups removes the groups of labs that were killed.
func SweepGroups() {
	if g, err := groupsUnder("/sys/fs/cgroup"); err == nil {
		sweep(g.root, syscall.Rmdir)
	}
}

// Put puts a process, with all of its threads, into the group of that name, which is made if it is not there yet.
func (g *Groups) Put(p *Process, name string, weight int) error {
	dir := g.path(name)
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		g.made = append(g.made, dir)
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("lab: scheduling group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, g.file), []byte(strconv.Itoa(weight*g.scale/100)), 0o644); err != nil {
		return fmt.Errorf("lab: weight %d: %w", weight, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.Pid())), 0o644); err != nil {
		return fmt.Errorf("lab: put process %d into %s: %w", p.Pid(), dir, err)
	}
	return nil
}

// Close removes the groups and names those that stay. Their processes must have ended; the kernel may take a moment to let go of them.
func (g *Groups) Close() (left []string) {
	for _, dir := range g.made {
		err := syscall.Rmdir(dir)
		for end := time.Now().Add(2 * time.Second); err == syscall.EBUSY && time.Now().Before(end); err = syscall.Rmdir(dir) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			left = append(left, fmt.Sprintf("scheduling group %s (%v)", dir, err))
		}
	}
	g.made = nil
	return left
}
