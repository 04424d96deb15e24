package doctor

import (
	"context"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// state is whether a new pod could be recorded: pods that run do not notice.
func (x *examination) state() {
	switch {
	case !x.up:
		x.skip("state", "only the daemon knows, and it cannot be asked")
	case x.status.State != nil:
		x.add("state", Failure, x.status.State.Remedy, "no pod can be added: %s", x.status.State.Finding)
	default:
		x.ok("state", "new pods can be recorded")
	}
}

var podDevice = regexp.MustCompile(`^ps[0-9a-f]{11}$`)

// strays are devices of pods that no record has: those that nobody uses, those whose pod lives, and, by their files, those whose record
// is damaged.
func (x *examination) strays(ctx context.Context) (dead, forgotten, damaged []string) {
	if x.away != "" {
		return nil, nil, nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, nil
	}
	pods, ports := x.pods, x.ports
	unknown := func(name string) bool {
		return !slices.ContainsFunc(pods, func(p control.Pod) bool { return p.Device == name }) &&
			!slices.ContainsFunc(ports, func(p control.Port) bool { return p.Device == name })
	}
	stray := slices.DeleteFunc(links, func(l netlink.Link) bool { return !podDevice.MatchString(l.Attrs().Name) || !unknown(l.Attrs().Name) })
	if len(stray) == 0 {
		return nil, nil, nil
	}
	// A pod is on record before its device is made: one that came after the daemon was asked is no stray.
	if pods, err = x.client.Pods(ctx); err != nil {
		return nil, nil, nil
	}
	for _, l := range stray {
		name := l.Attrs().Name
		file := slices.IndexFunc(x.ipam.Damaged, func(path string) bool { return filepath.Base(path) == name+".json" })
		switch {
		case !unknown(name):
		case file >= 0:
			damaged = append(damaged, x.ipam.Damaged[file])
		case podLives(l):
			forgotten = append(forgotten, name)
		default:
			dead = append(dead, name)
		}
	}
	return dead, forgotten, damaged
}

// podLives is whether the other end of a pod's veth is in another network namespace, and up.
func podLives(l netlink.Link) bool {
	a := l.Attrs()
	return l.Type() == "veth" && a.NetNsID >= 0 && a.RawFlags&unix.IFF_LOWER_UP != 0
}

// forgotten tells of pods that live and that the daemon does not know: its state directory is another one than they were made with.
func (x *examination) forgotten(devices []string) {
	if len(devices) > 0 {
		x.add("leftovers", Failure, "stop the daemon, move the files of these pods back into pods of its state directory, and start it; without them a restart removes the devices, so else delete these pods: their runtime makes them anew",
			"these devices are of pods that live and that the daemon has no record of, so they have no network: %s", listed(devices))
	}
}

// damaged tells of pods whose record cannot be read. The daemon keeps their devices, and drops what comes from there.
func (x *examination) damaged(files []string) {
	if len(files) > 0 {
		x.add("leftovers", Failure, "delete these pods, their runtime makes them anew; if a later penstockd wrote the files, stop the daemon, move them back into the directory above and start that one",
			"the state files of these pods cannot be read, so they have no network, and all that they send is dropped: %s", listed(files))
	}
}
