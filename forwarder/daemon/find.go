package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
)

// leastPrefix is how much of a container's id names it: runtimes and doctor show twelve characters, people copy fewer.
const leastPrefix = 8

// findPod finds an attached pod by "container/interface", container, owner ("namespace/name"), device or address. The start of a
// container's id does for it, if it is the only one that starts so.
func (d *Daemon) findPod(name string) (control.Port, error) {
	ports, err := d.Ports(context.Background())
	if err != nil {
		return control.Port{}, err
	}
	var found, start []control.Port
	id, iface, one := strings.Cut(name, "/")
	for _, p := range ports {
		if name == p.Container+"/"+p.Interface || p.Device != "" && name == p.Device || slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return a.String() == name }) {
			return p, nil
		}
		if name == p.Container || name == p.Owner || name == p.Owner+"/"+p.Interface {
			found = append(found, p)
		}
		if len(id) >= leastPrefix && strings.HasPrefix(p.Container, id) && (!one || iface == p.Interface) {
			start = append(start, p)
		}
	}
	if len(found) == 0 {
		found = start
	}
	switch len(found) {
	case 0:
		return control.Port{}, control.Errorf(control.NotFound, "no pod %q is attached to this node: penstockctl ports lists them", name)
	case 1:
		return found[0], nil
	}
	var names []string
	several := false // containers
	for _, p := range found {
		names = append(names, p.Container+"/"+p.Interface)
		several = several || p.Container != found[0].Container
	}
	if several && len(start) == len(found) {
		return control.Port{}, control.Errorf(control.BadRequest, "%q is the start of several containers' ids, write more of the one you mean: %s", name, strings.Join(names, ", "))
	}
	return control.Port{}, control.Errorf(control.BadRequest, "%q has several interfaces, name one of them: %s", name, strings.Join(names, ", "))
}
