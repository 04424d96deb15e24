package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestCNIContainerd: containerd as a distribution ships it (Debian's 1.6 speaks CNI 1.0.0 and no later) runs a container on the
// network: `ctr run --cni`. There is no registry, so the container's files are a busybox. ctr looks for its configuration under
// /etc/cni and for plugins under /opt/cni; it gets a mount namespace in which these are ours.
func TestCNIContainerd(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, program := range []string{"containerd", "ctr", "runc", "unshare", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install containerd busybox-static", program)
		}
	}
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	dir := t.TempDir()
	address := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), address, address+".ttrpc")
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	containerd, err := a.NS.Start(exec.Command("containerd", "--config", filepath.Join(dir, "config.toml"), "--log-level", "warn"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(containerd.Kill)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if exec.Command("ctr", "--address", address, "--connect-timeout", "1s", "version").Run() == nil {
			break
		}
		if time.Now().After(end) || containerd.Exited() {
			t.Skipf("containerd does not run here:\n%s", containerd.Output())
		}
	}
	path, err := lab.PluginDir()
	if err != nil {
		t.Fatal(err)
	}
	root := busybox(t, filepath.Join(dir, "rootfs"))
	for _, attach := range []string{"veth", "tun"} {
		t.Run(attach, func(t *testing.T) {
			list := a.List(lab.Conf{"cniVersion": "1.0.0", "cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}}, lab.Conf{"type": "penstock", "attach": attach})
			if err := os.WriteFile(filepath.Join(dir, "10-penstock.conflist"), list, 0o600); err != nil {
				t.Fatal(err)
			}
			// The container says who it is, pings, and waits until it is told to end.
			script := "ip -o addr show dev eth0; for a in $FAR; do ping -c 1 -W 5 $a >/dev/null && echo reached $a; done; echo ready; while ! [ -e /tmp/end ]; do usleep 20000; done"
			os.Remove(filepath.Join(root, "tmp", "end"))
			run := "mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && ln -s " + path + "/penstock /opt/cni/bin/ && " +
				"mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/net.d && cp " + dir + "/10-penstock.conflist /etc/cni/net.d/ && " +
				"exec ctr --address " + address + " run --rm --cni --env \"FAR=$FAR\" --rootfs " + root + " pod-" + attach + " /bin/sh -c \"$SCRIPT\""
			cmd := exec.Command("unshare", "-m", "sh", "-c", run)
			cmd.Env = append(os.Environ(), "SCRIPT="+script, fmt.Sprintf("FAR=%s %s", far.IP4, far.IP6))
			ctr, err := a.NS.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(30 * time.Second); !strings.Contains(ctr.Output(), "ready"); time.Sleep(20 * time.Millisecond) {
				if ctr.Exited() && strings.Contains(ctr.Output(), "OCI runtime create failed") {
					t.Skipf("runc makes no container here:\n%s", ctr.Output())
				}
				if ctr.Exited() || time.Now().After(end) {
					t.Fatalf("no container:\n%s\n%s", ctr.Output(), containerd.Output())
				}
			}
			pods, err := a.Daemon.Control().Pods(t.Context())
			if err != nil || len(pods) != 1 || len(pods[0].Addresses) != 2 {
				t.Fatalf("%+v, %v", pods, err)
			}
			for _, x := range pods[0].Addresses {
				if !strings.Contains(ctr.Output(), x.String()+"/") {
					t.Errorf("the container has not got %s:\n%s", x, ctr.Output())
				}
				if err := far.Ping(x); err != nil {
					t.Error(err)
				}
			}
			for _, x := range []netip.Addr{far.IP4, far.IP6} {
				if !strings.Contains(ctr.Output(), "reached "+x.String()) {
					t.Errorf("the container does not reach %s:\n%s", x, ctr.Output())
				}
			}
			if err := os.WriteFile(filepath.Join(root, "tmp", "end"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := ctr.Wait(20 * time.Second); err != nil { // it calls DEL when the container is gone
				t.Errorf("%v:\n%s", err, ctr.Output())
			}
			nothingLeft(t, a)
		})
	}
}

// busybox makes a container's files.
func busybox(t *testing.T, root string) string {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "tmp", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "ip", "ping", "usleep", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
