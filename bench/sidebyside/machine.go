package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/load"
	"golang.org/x/sys/unix"
)

// machine is where the figures come from.
type machine struct {
	Kernel, CPU string
	Cores       int
	MemoryMiB   uint64
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), CPU: runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) == nil {
		m.MemoryMiB = i.Totalram * uint64(i.Unit) >> 20
	}
	return m
}

// ownControl is the congestion control that TCP has here if nobody asks for another.
func ownControl() string {
	b, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return strings.TrimSpace(string(b))
}

// commit is git's name of what is measured.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// daemonSum identifies the penstockd of the environment; it is empty if the lab builds one itself.
func daemonSum() (string, error) {
	path := os.Getenv("PENSTOCKD")
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("PENSTOCKD: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}

// othersUse is how many cores are busy while we do nothing.
func othersUse(ctx context.Context) (float64, error) {
	before, err := load.ReadCPU()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := pause(ctx, time.Second); err != nil {
		return 0, err
	}
	after, err := load.ReadCPU()
	return (after.Busy - before.Busy).Seconds() / time.Since(begin).Seconds(), err
}
