package torture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// call is one call of the plugin, as a runtime makes it.
type call struct {
	verb, container, netns, ifname string
	version, network, attach       string
	previous                       json.RawMessage // prevResult; nil: none, or the cache is lost
	valid                          []types.GCAttachment
}

// outcome is how it ended.
type outcome struct {
	killed  bool
	failure *types.Error // nil: success, or killed
	output  []byte
	stderr  string
	took    time.Duration
}

// errNone is for outcomes that are neither success nor a CNI error.
const codeNoError = 9999

// plugin runs one.
func (x *torture) plugin(c call, f fuse) outcome {
	conf := map[string]any{"cniVersion": c.version, "name": c.network, "type": "penstock", "attach": c.attach, "socket": x.n.Daemon.Socket}
	if c.previous != nil {
		conf["prevResult"] = c.previous
	}
	if c.verb == "GC" {
		conf["cni.dev/valid-attachments"] = c.valid
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		panic(err) // it is made of strings
	}
	cmd := exec.Command(x.program)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + c.verb, "CNI_CONTAINERID=" + c.container, "CNI_NETNS=" + c.netns,
		"CNI_IFNAME=" + c.ifname, "CNI_PATH=" + filepath.Dir(x.program)}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	o := x.run(cmd, f)
	o.output, o.stderr, o.took = stdout.Bytes(), stderr.String(), time.Since(began)
	if o.failure != nil {
		e := &types.Error{}
		if json.Unmarshal(o.output, e) == nil && e.Msg != "" {
			o.failure = e
		} else {
			o.failure.Details = stdout.String() + stderr.String()
		}
	}
	if !o.killed {
		x.pace.note(c.verb+" "+c.attach, o.took)
	}
	return o
}

// run starts a program on the node and waits for its end. It dies with us.
func (x *torture) run(cmd *exec.Cmd, f fuse) outcome {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := x.n.Do(cmd.Start); err != nil {
		return outcome{failure: &types.Error{Code: codeNoError, Msg: err.Error()}}
	}
	done := make(chan struct{})
	go f.burn(func() { cmd.Process.Kill() }, done)
	err := cmd.Wait()
	close(done)
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL && f.on {
		return outcome{killed: true}
	}
	if err != nil {
		return outcome{failure: &types.Error{Code: codeNoError, Msg: err.Error()}}
	}
	return outcome{}
}

func (c call) String() string {
	return fmt.Sprintf("%s of %.8s (%s, CNI %s)", c.verb, c.container, c.attach, c.version)
}

// stateFile is where the daemon keeps what it knows of a pod.
func (x *torture) stateFile(container, ifname string) string {
	return filepath.Join(x.stateDir(), control.DeviceName(container, ifname)+".json")
}

func (x *torture) stateDir() string {
	return filepath.Join(filepath.Dir(x.n.Daemon.Config), "state", "pods")
}

// record is what of a state file matters here.
type record struct {
	Phase     string   `json:"phase"`
	Addresses []string `json:"addresses"`
}

// records reads the state directory as a successor would find it.
func (x *torture) records() map[string]record {
	all := map[string]record{}
	files, _ := filepath.Glob(filepath.Join(x.stateDir(), "*.json"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		var r record
		if err == nil && json.Unmarshal(b, &r) == nil {
			all[filepath.Base(f)[:len(filepath.Base(f))-len(".json")]] = r
		}
	}
	return all
}

func program() (string, error) {
	dir, err := lab.PluginDir()
	return filepath.Join(dir, "penstock"), err
}

func sortedKeys[V any](m map[string]V) []string {
	return slicesSorted(maps.Keys(m))
}
