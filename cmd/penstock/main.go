// Command penstock is the CNI plugin: its file name is its CNI type. This build answers VERSION; the other verbs end with a
// CNI error that says so, so that a runtime which is set up too early shows the reason instead of pods without a network.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/version"

	"github.com/penstock-net/penstock/forwarder/control"
)

// The versions of the CNI specification that the plugin speaks.
var supported = cni.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: refuse, Del: refuse, Check: refuse, GC: refuse, Status: refuse}, supported,
		"penstock "+control.Version()+", a CNI plugin for penstockd")
}

// refuse is the answer to every verb that would touch a pod. The code is the one that CNI 1.1.0 gives to a plugin that cannot
// serve ADD requests.
func refuse(*skel.CmdArgs) error {
	return types.NewError(types.ErrPluginNotAvailable, "this build of penstock does not attach pods yet",
		"attach a pod by hand with penstockctl attach, or by POST /v1/attach on penstockd's control socket")
}
