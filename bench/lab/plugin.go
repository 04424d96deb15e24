package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Pods as a container runtime makes them: a namespace, and then the CNI plugin by way of libcni.
//
//	p := n.AddPodByPlugin(t, lab.Veth)        // the usual list
//	p := n.BarePod(t)                         // only the namespace …
//	r, err := p.Plug(n.List(nil, lab.Conf{"type": "penstock", "attach": "tun"}))

// plugged is what a runtime remembers of an attachment.
type plugged struct {
	list    []byte
	runtime *libcni.RuntimeConf
}

// Conf is the configuration of one plugin in a list.
type Conf map[string]any

// pluginTimeout is generous, as two cores may be doing something else.
const pluginTimeout = 30 * time.Second

// PluginDir is a directory with the plugin in it, under its name.
func PluginDir() (string, error) {
	program, err := pluginProgram()
	if err != nil || filepath.Base(program) == "penstock" {
		return filepath.Dir(program), err
	}
	dir := program + ".d" // in the cache: the program there is named after its contents
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("lab: directory for the plugin: %w", err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "penstock")); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("lab: link to the plugin: %w", err)
	}
	return dir, nil
}

// ReferencePlugins builds plugins of the CNI project, and cnitool, from the modules that this one requires: by their names below
// plugins/ ("main/bridge", "ipam/host-local") or "cnitool". It returns the directory with them, which stays in the user's cache.
func ReferencePlugins(names ...string) (string, error) {
	dir, err := referenceDir()
	if err != nil {
		return "", err
	}
	references.Lock()
	defer references.Unlock()
	for _, name := range names {
		path := filepath.Join(dir, filepath.Base(name))
		if _, err := os.Stat(path); err == nil {
			continue
		}
		target := "github.com/containernetworking/plugins/plugins/" + name
		if name == "cnitool" {
			target = "github.com/containernetworking/cni/cnitool"
		}
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
		cmd := exec.Command("go", "build", "-C", root, "-o", tmp, target) // tools of our go.mod: what is not there yet is fetched
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("lab: %s does not build: %w\n%s", name, err, out)
		}
		if err := os.Rename(tmp, path); err != nil { // another process may run it already
			return "", fmt.Errorf("lab: %s: %w", name, err)
		}
	}
	return dir, nil
}

var references sync.Mutex

// referenceDir is named after the versions of the modules.
var referenceDir = sync.OnceValues(func() (string, error) {
	version, err := goList("{{.Version}}", "github.com/containernetworking/cni", "github.com/containernetworking/plugins")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "penstock-lab", "cni-"+strings.Join(strings.Fields(version), "-"))
	return dir, os.MkdirAll(dir, 0o755)
})

func goList(format string, modules ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", append([]string{"list", "-m", "-f", format}, modules...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("lab: go list of %s: %w", strings.Join(modules, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// List is a CNI list of version 1.1.0 for a node; penstock gets the socket of its daemon. Top holds keys of the list itself.
func (n *Node) List(top Conf, plugins ...Conf) []byte {
	list := Conf{"cniVersion": "1.1.0", "name": "penstock"}
	for k, v := range top {
		list[k] = v
	}
	var all []Conf
	for _, p := range plugins {
		c := Conf{}
		for k, v := range p {
			c[k] = v
		}
		if c["type"] == "penstock" && c["socket"] == nil {
			c["socket"] = n.socket()
		}
		all = append(all, c)
	}
	list["plugins"] = all
	b, err := json.Marshal(list)
	if err != nil {
		panic(err) // a Conf holds what JSON can
	}
	return b
}

// AddPodByPlugin adds a pod through the CNI plugin, with addresses of the daemon's choice. The daemon must run.
func (n *Node) AddPodByPlugin(t TB, a Attach) *Pod {
	t.Helper()
	p := n.BarePod(t)
	p.Attach = a
	if _, err := p.Plug(n.List(nil, Conf{"type": "penstock", "attach": string(a)})); err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

// BarePod adds a pod that has a namespace and nothing else.
func (n *Node) BarePod(t TB) *Pod {
	t.Helper()
	p, err := n.bare(fmt.Sprintf("%s/pod-%d", n.Name, len(n.Pods)+1), Veth)
	if err != nil {
		t.Fatalf("%v", err)
	}
	p.plugged = &plugged{}
	n.Pods = append(n.Pods, p)
	return p
}

// NetnsPath is what a runtime gives as CNI_NETNS.
func (p *Pod) NetnsPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.fd) }

// PlugOption changes the runtime's part of a call.
type PlugOption func(*libcni.RuntimeConf)

// WithCapability gives a capability's argument.
func WithCapability(name string, value any) PlugOption {
	return func(r *libcni.RuntimeConf) { r.CapabilityArgs[name] = value }
}

// WithArg gives a pair of CNI_ARGS.
func WithArg(key, value string) PlugOption {
	return func(r *libcni.RuntimeConf) { r.Args = append(r.Args, [2]string{key, value}) }
}

// WithInterface names the interface, which is else eth0.
func WithInterface(name string) PlugOption {
	return func(r *libcni.RuntimeConf) { r.IfName = name }
}

// Plug is ADD of a list. The pod's addresses, MAC and MTU are those of the result, if it is about eth0.
func (p *Pod) Plug(list []byte, options ...PlugOption) (*current.Result, error) {
	r := &libcni.RuntimeConf{ContainerID: p.Container, NetNS: p.NetnsPath(), IfName: p.Interface, CapabilityArgs: map[string]any{}}
	for _, o := range options {
		o(r)
	}
	var result *current.Result
	err := p.Node.libcni(list, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		answer, err := c.AddNetworkList(ctx, l, r)
		if err != nil {
			return err
		}
		result, err = current.NewResultFromResult(answer)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: ADD of %s: %w", p.Name, err)
	}
	if r.IfName != p.Interface {
		return result, nil
	}
	*p.plugged = plugged{list, r}
	return result, p.took(result)
}

// took makes the pod what a result says.
func (p *Pod) took(r *current.Result) error {
	for _, ip := range r.IPs {
		if ip.Interface != nil && (*ip.Interface >= len(r.Interfaces) || r.Interfaces[*ip.Interface].Sandbox == "") {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); a.Is4() {
			p.IP4 = a
		} else {
			p.IP6 = a
		}
	}
	link, err := p.link(p.Device)
	if err != nil {
		return err
	}
	p.MTU, p.MAC = link.Attrs().MTU, nil
	if m := link.Attrs().HardwareAddr; len(m) == 6 {
		p.MAC = append(net.HardwareAddr{}, m...)
	}
	return nil
}

// Check is CHECK of what Plug did.
func (p *Pod) Check() error {
	return p.Node.libcni(p.plugged.list, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.CheckNetworkList(ctx, l, p.plugged.runtime)
	})
}

// PluginStatus is STATUS of a list.
func (n *Node) PluginStatus(list []byte) error {
	return n.libcni(list, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.GetStatusNetworkList(ctx, l)
	})
}

// Unplug is DEL; a pod that was never plugged is left alone.
func (p *Pod) Unplug(t TB) {
	t.Helper()
	if p.plugged.list == nil {
		return
	}
	err := p.Node.libcni(p.plugged.list, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.DelNetworkList(ctx, l, p.plugged.runtime)
	})
	if err != nil {
		t.Errorf("lab: DEL of %s: %v", p.Name, err)
	}
	p.plugged.list = nil
}

// UnplugInterface is DEL of a further interface.
func (p *Pod) UnplugInterface(t TB, list []byte, name string) {
	t.Helper()
	err := p.Node.libcni(list, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.DelNetworkList(ctx, l, &libcni.RuntimeConf{ContainerID: p.Container, NetNS: p.NetnsPath(), IfName: name})
	})
	if err != nil {
		t.Errorf("lab: DEL of %s in %s: %v", name, p.Name, err)
	}
}

// libcni calls fn with its thread in the node's namespace, where plugins then run.
func (n *Node) libcni(list []byte, fn func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	l, err := libcni.ConfListFromBytes(list)
	if err != nil {
		return fmt.Errorf("lab: CNI list: %w", err)
	}
	var names []string
	for _, p := range l.Plugins {
		names = append(names, p.Network.Type, p.Network.IPAM.Type)
	}
	path, err := PluginPath(names...)
	if err != nil {
		return err
	}
	c := libcni.NewCNIConfigWithCacheDir(path, filepath.Join(n.Lab.dir, n.Name, "cni"), nil)
	ctx, cancel := context.WithTimeout(context.Background(), pluginTimeout)
	defer cancel()
	return n.Do(func() error { return fn(ctx, c, l) })
}

// PluginPath are the directories, as for CNI_PATH, in which penstock and these reference plugins are, called by their types.
func PluginPath(types ...string) ([]string, error) {
	places := map[string]string{
		"host-local": "ipam", "static": "ipam", "dhcp": "ipam", "bridge": "main", "ptp": "main",
		"portmap": "meta", "tuning": "meta", "firewall": "meta", "bandwidth": "meta",
	}
	var names []string
	for _, name := range types {
		if place := places[name]; place != "" {
			names = append(names, place+"/"+name)
		}
	}
	own, err := PluginDir()
	if err != nil || len(names) == 0 {
		return []string{own}, err
	}
	reference, err := ReferencePlugins(names...)
	return []string{own, reference}, err
}

// adopt brings the queues of plugged TUN pods to a daemon that was restarted; veths it finds by itself.
func (n *Node) adopt() error {
	program, err := pluginProgram()
	if err != nil {
		return err
	}
	process, err := n.NS.Start(exec.Command(program, "adopt", "--socket", n.socket()))
	if err != nil {
		return err
	}
	if err := process.Wait(pluginTimeout); err != nil {
		return fmt.Errorf("lab: penstock adopt on %s: %w\n%s", n.Name, err, process.Output())
	}
	return nil
}
