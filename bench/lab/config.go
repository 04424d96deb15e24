package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// encap is what this node's peers must speak to it.
func (n *Node) encap() string {
	switch n.Role {
	case KernelVXLAN:
		return "vxlan"
	case FlannelUDP:
		return "udp"
	case GopacketIPIP:
		return "ipip"
	}
	return n.Lab.Config.Encap
}

// port is the node's tunnel port, 0 for ipip.
func (n *Node) port() uint16 {
	if n.encap() == n.Lab.Config.Encap {
		return n.Lab.Config.Port
	}
	return map[string]uint16{"vxlan": 8472, "udp": 8285}[n.encap()]
}

// yaml is the node's configuration file: the lab's own, with the snippets merged over it one after the other.
func (n *Node) yaml(snippets ...string) ([]byte, error) {
	c := n.Lab.Config
	file := map[string]any{
		"node": map[string]any{
			"name": n.Name, "address": n.Underlay().String(),
			"podCIDRs": []any{n.PodCIDR4.String(), n.PodCIDR6.String()},
		},
		"network": map[string]any{"cidrs": []any{Cluster4.String(), Cluster6.String()}},
		"host":    map[string]any{"masquerade": c.Masquerade},
		"control": map[string]any{"socket": n.socket()},
		"state":   filepath.Join(n.Lab.dir, n.Name, "state"),
	}
	encap := map[string]any{"type": c.Encap}
	if c.Encap != "ipip" {
		encap["port"] = int(c.Port)
	}
	if c.Encap == "vxlan" {
		encap["vni"] = int(c.VNI)
	}
	if c.PodMTU != 0 {
		encap["mtu"] = c.PodMTU
	}
	file["encap"] = encap
	var peers []any
	for _, o := range n.others() {
		p := map[string]any{
			"name": o.Name, "address": o.Underlay().String(),
			"podCIDRs": []any{o.PodCIDR4.String(), o.PodCIDR6.String()},
		}
		if o.encap() != c.Encap {
			p["encap"] = o.encap()
			if o.port() != 0 {
				p["port"] = int(o.port())
			}
		}
		if o.encap() == "vxlan" && o.Role != Penstock {
			p["mac"] = o.VTEPMAC.String()
		}
		peers = append(peers, p)
	}
	file["peers"] = peers
	for _, s := range append(append([]string{}, c.YAML...), snippets...) {
		var over map[string]any
		if err := yaml.Unmarshal([]byte(s), &over); err != nil {
			return nil, fmt.Errorf("lab: YAML snippet %q: %w", s, err)
		}
		merge(file, over)
	}
	return yaml.Marshal(file)
}

// merge puts src over dst: maps are merged, everything else (lists too) is replaced, null removes a key.
func merge(dst, src map[string]any) {
	for key, value := range src {
		if value == nil {
			delete(dst, key)
			continue
		}
		into, ok1 := dst[key].(map[string]any)
		from, ok2 := value.(map[string]any)
		if ok1 && ok2 {
			merge(into, from)
		} else {
			dst[key] = value
		}
	}
}

func (n *Node) socket() string { return filepath.Join(n.Lab.dir, n.Name+".sock") }

func (n *Node) configPath() string { return filepath.Join(n.Lab.dir, n.Name, "penstock.yaml") }

// writeConfig writes the file by rename, as an operator's tool would, so that no daemon ever reads half of it.
func (n *Node) writeConfig(snippets ...string) error {
	content, err := n.yaml(snippets...)
	if err != nil {
		return err
	}
	path := n.configPath()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("lab: directory of %s: %w", n.Name, err)
	}
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return fmt.Errorf("lab: configuration of %s: %w", n.Name, err)
	}
	return os.Rename(path+".new", path)
}
