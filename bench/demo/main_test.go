package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// The demo is tested as the program that people run: this binary, started again as main.
func TestMain(m *testing.M) {
	if os.Getenv("DEMO_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func demo() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "DEMO_TEST_MAIN=1")
	return cmd
}

// oneSentence runs the demo where it cannot work.
func oneSentence(t *testing.T, cmd *exec.Cmd, about string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("ended with %v", err)
	}
	said := stderr.String()
	if stdout.Len() != 0 || strings.Count(said, "\n") != 1 || !strings.HasSuffix(said, ".\n") || !strings.Contains(said, about) {
		t.Errorf("stdout %q, stderr %q", stdout.String(), said)
	}
}

func TestNotRoot(t *testing.T) {
	lab.Require(t)
	// A copy that everybody may execute: the test's own directory is closed to others.
	dir := t.TempDir()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "demo")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	cmd := demo()
	cmd.Path, cmd.Dir = path, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	oneSentence(t, cmd, "root")
}

func TestNoTUN(t *testing.T) {
	lab.Require(t)
	done := make(chan struct{})
	go func() { // on a thread that ends with the goroutine, and its mount namespace with it
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil {
			t.Error(err)
			return
		}
		oneSentence(t, demo(), "/dev/net/tun")
	}()
	<-done
}

// TestInterrupt: Ctrl-C and SIGKILL in the middle of traffic leave no process behind.
func TestInterrupt(t *testing.T) {
	lab.Require(t)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd := demo()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill() })
			lines, said := bufio.NewScanner(out), ""
			for lines.Scan() {
				said += lines.Text() + "\n"
				if strings.Contains(lines.Text(), "node to pod") { // the transfer is next
					break
				}
			}
			time.Sleep(200 * time.Millisecond)
			daemons := children(cmd.Process.Pid)
			if len(daemons) != 2 {
				t.Fatalf("%d daemons run; the demo said:\n%s", len(daemons), said)
			}
			began := time.Now()
			cmd.Process.Signal(signal)
			for lines.Scan() {
				said += lines.Text() + "\n"
			}
			cmd.Wait()
			if took := time.Since(began); took > 40*time.Second {
				t.Errorf("the demo needed %v to end", took)
			}
			if signal != syscall.SIGKILL {
				if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said, "are gone") {
					t.Errorf("exit code %d; the demo said:\n%s", code, said)
				}
			}
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				alive := 0
				for _, pid := range daemons {
					stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", pid))
					if err == nil && !strings.Contains(string(stat), ") Z ") {
						alive++
					}
				}
				if alive == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d daemons outlived the demo", alive)
				}
			}
		})
	}
}

// children are the processes that any thread of a process has started.
func children(pid int) []string {
	var pids []string
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		pids = append(pids, strings.Fields(string(list))...)
	}
	return pids
}

func TestTable(t *testing.T) {
	table := newTable()
	table.set("ping", "udp", "8 of 8")
	table.set("ping", "vxlan", "8 of 8")
	table.fail("throughput", "vxlan", fmt.Errorf("nothing"))
	var b strings.Builder
	table.print(&b)
	want := "             udp      vxlan\n" +
		"────────────────────────────\n" +
		"ping         8 of 8   8 of 8\n" +
		"throughput            FAILED\n"
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
	if len(table.failures) != 1 || table.failures[0] != "vxlan, throughput: nothing" {
		t.Errorf("failures %q", table.failures)
	}
	if s := thousands(1234567) + thousands(12) + thousands(123456); s != "1,234,56712123,456" {
		t.Error(s)
	}
}
