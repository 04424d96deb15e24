package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"golang.org/x/sys/unix"
)

func (x *examination) daemon() {
	switch {
	case !x.up && control.CodeOf(x.silent) != control.Internal:
		x.add("daemon", Failure, "look at penstockctl status and the daemon's log: journalctl -u penstockd -n 50", "it answers with an error: %v", x.silent)
	case !x.up:
		finding, remedy := x.silence()
		x.add("daemon", Failure, remedy, "%s", finding)
	case !x.status.Ready && len(x.waiting()) > 0 && x.status.Reason == control.AdoptReason(x.status.Waiting):
		x.ok("daemon", "penstockd %s runs, up %d s; it is not ready as long as pods wait for their queues: see pods", x.status.Version, x.status.UptimeSeconds)
	case !x.status.Ready:
		x.add("daemon", Failure, "if this stays, look at its log: journalctl -u penstockd -n 50", "it is not ready: %s", x.status.Reason)
	case len(x.status.Unopened) > 0:
		x.add("daemon", Warning, "ss -lnptu says who has the port: stop it, and within a minute the daemon has it", "it is ready, but %s", strings.Join(x.status.Unopened, "; "))
	default:
		x.ok("daemon", "penstockd %s is ready, up %d s", x.status.Version, x.status.UptimeSeconds)
	}
}

func (x *examination) configuration() {
	switch {
	case !x.up && x.o.Config == "" && errors.Is(x.badConfig, fs.ErrNotExist):
		// The daemon may have been started with another file: this is a place that nobody named.
		x.add("configuration", Warning, "if the daemon's is elsewhere, penstockctl doctor --config PATH checks it; if there is none, penstockctl config example shows what belongs into it",
			"no file is at the default place %s, and where the daemon's is only the daemon could say", x.path)
	case x.badConfig == nil && x.up && x.status.Rejected != "":
		x.add("configuration", Warning, "systemctl restart penstockd, if a key needs one; else systemctl reload penstockd, as it is valid now",
			"%s is valid, but its last reload was rejected: %s", x.path, strings.ReplaceAll(x.status.Rejected, "\n", "; "))
	case x.badConfig == nil:
		x.ok("configuration", "%s is valid", x.path)
	case x.up:
		x.add("configuration", Warning, configRemedy(x.path, x.badConfig), "the daemon runs, but would not start again: %s", oneLine(x.badConfig))
	default:
		x.add("configuration", Failure, configRemedy(x.path, x.badConfig), "the daemon cannot start: %s", oneLine(x.badConfig))
	}
}

func configRemedy(path string, err error) string {
	var unreadable *config.Unreadable
	switch {
	case !errors.As(err, &unreadable):
		return "penstockctl config check " + path + " names each mistake; penstockctl config example shows a whole file"
	case errors.Is(err, fs.ErrNotExist):
		return "penstockctl config check " + path + " says then what is still wrong with it" // the finding says to write it
	}
	return "let " + path + " be a file that can be read, or name the daemon's with --config"
}

// oneLine joins the mistakes of a configuration: a finding is a cell of a table.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (x *examination) kernel() {
	if !x.up {
		x.skip("kernel", "only the daemon probes the kernel, and it cannot be asked")
		return
	}
	var missing, off []string
	for _, c := range x.status.Capabilities {
		switch {
		case !c.Found && c.Name == "tun":
			x.add("kernel", Failure, "load the module tun, or use a kernel that has it", "TUN devices do not work: %s", c.Detail)
			return
		case !c.Found:
			missing = append(missing, fmt.Sprintf("%s (%s; needs %s)", c.Name, c.Detail, c.Needs))
		case !c.Used:
			off = append(off, c.Name)
		}
	}
	text := fmt.Sprintf("all %d capabilities were found", len(x.status.Capabilities))
	if len(missing) > 0 {
		text = fmt.Sprintf("%d of %d capabilities were found; not there, with the next mechanism in their place: %s", len(x.status.Capabilities)-len(missing), len(x.status.Capabilities), strings.Join(missing, ", "))
	}
	if len(off) > 0 {
		text += "; not in use: " + strings.Join(off, ", ")
	}
	x.ok("kernel", "%s", text)
}

func (x *examination) tun() {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		x.ok("tun", "/dev/net/tun can be opened")
	case err == unix.EACCES || err == unix.EPERM:
		x.skip("tun", "/dev/net/tun cannot be opened by this user: run as root")
	default:
		x.add("tun", Failure, "modprobe tun, and mknod /dev/net/tun c 10 200 where no udev makes it", "/dev/net/tun cannot be opened: %v", err)
	}
}

// process looks at the daemon as the kernel sees it.
func (x *examination) process() {
	if x.pid == 0 {
		x.skip("privileges", "there is no daemon to look at")
		x.skip("limits", "there is no daemon to look at")
		return
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.pid))
	if err != nil {
		x.skip("privileges", "the daemon's process cannot be looked at: %v", err)
	} else if caps, ok := effective(status); !ok {
		x.skip("privileges", "the kernel does not tell the daemon's capabilities")
	} else {
		var lacks []string
		for bit, name := range map[int]string{unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_NET_RAW: "CAP_NET_RAW"} {
			if caps&(1<<bit) == 0 {
				lacks = append(lacks, name)
			}
		}
		if len(lacks) > 0 {
			x.add("privileges", Failure, "give it both by CapabilityBoundingSet and AmbientCapabilities in its unit, or run it as root", "the daemon lacks %s", strings.Join(lacks, " and "))
		} else {
			x.ok("privileges", "the daemon has CAP_NET_ADMIN and CAP_NET_RAW")
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", x.pid))
	if n, ok := openFiles(limits); err == nil && ok {
		open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", x.pid)) // none for who may not look
		x.descriptors(uint64(len(open)), n)
	} else {
		x.skip("limits", "the daemon's limits cannot be read: run as root")
	}
}

const fewFiles = 8192 // some for each worker of each of the 110 pods that a node usually has at most

// descriptors compares what the daemon has open with what it may open.
func (x *examination) descriptors(open, may uint64) {
	raise := fmt.Sprintf("prlimit --pid %d --nofile=65536 raises it at once; set LimitNOFILE=65536 in its unit, so that it stays", x.pid)
	switch {
	case open >= may:
		x.add("limits", Failure, raise, "the daemon has all of the %d descriptors open that it may have: no pod can be attached, and requests may stay without an answer", may)
	case 10*(may-open) < may:
		x.add("limits", Warning, raise, "the daemon has %d of the %d descriptors open that it may have, and each pod takes some", open, may)
	case may < fewFiles:
		x.add("limits", Warning, "set LimitNOFILE=65536 in its unit", "the daemon may open %d descriptors, and each pod takes some", may)
	default:
		x.ok("limits", "the daemon may open %d descriptors", may)
	}
}

// effective reads CapEff of /proc/PID/status.
func effective(status []byte) (caps uint64, ok bool) {
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		if v, is := strings.CutPrefix(s.Text(), "CapEff:"); is {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return caps, err == nil
		}
	}
	return 0, false
}

// openFiles reads the soft limit of /proc/PID/limits.
func openFiles(limits []byte) (n uint64, ok bool) {
	for s := bufio.NewScanner(bytes.NewReader(limits)); s.Scan(); {
		if v, is := strings.CutPrefix(s.Text(), "Max open files"); is {
			f := strings.Fields(v)
			if len(f) == 0 {
				return 0, false
			}
			if f[0] == "unlimited" {
				return 1 << 30, true
			}
			n, err := strconv.ParseUint(f[0], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
