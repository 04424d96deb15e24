package control

import "runtime/debug"

// version is set by the Makefile: -ldflags "-X …/forwarder/control.version=v1.2.3".
var version string

// Version names the build of this program: what the Makefile said, else what the Go tool knows of the module (go install
// …@v1.2.3), else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "dev"
}
