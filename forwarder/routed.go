package forwarder

// A routed pod hangs on a device that another plugin made (a bridge, a ptp veth): the host's stack has a route to it, and no
// frame of it is read here. What it sends comes out of the host's routing through penstock0, as it is; nobody translated it, so
// it is never remembered as such a flow. What other pods or the wire send to it is handed to the host, whose route to the pod
// is more specific than the one to penstock0. A packet for it that comes out of penstock0 all the same has no such route: it is
// answered with an ICMP error instead of going round.
//
//	pod (veth, tun) ──▶ worker ──▶ penstock0 ──▶ host's routes ──▶ cni0 ──▶ routed pod
//	wire ─────────────▶ worker ──┘

// attachRouted publishes the routes of a port that has no device. f.control is held.
func (f *Forwarder) attachRouted(p *port) (PortInfo, error) {
	if err := f.routePort(p); err != nil {
		return PortInfo{}, err
	}
	f.ports = append(f.ports, p)
	f.savePorts()
	return p.info(), nil
}
