package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Unit is a systemd unit whose sandbox is put on by hand where no systemd runs: its capabilities, no new privileges, a
// read-only file system but for the lab's directory (which holds state and run directories of its daemons) and
// ReadWritePaths, and no device but those that DevicePolicy=closed and DeviceAllow leave. Its filter of system calls is not
// among them. Set [Unit.Wrap] as a node's [Node.Wrap].
type Unit struct {
	lab        *Lab
	directives map[string][]string
}

// ReadUnit reads a unit of this module, by its path from the module's root.
func ReadUnit(l *Lab, path string) (*Unit, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	u := &Unit{lab: l, directives: map[string][]string{}}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u.directives[key] = append(u.directives[key], strings.Fields(value)...)
		}
	}
	for key, want := range map[string]string{"ProtectSystem": "strict", "DevicePolicy": "closed", "NoNewPrivileges": "yes"} {
		if got := strings.Join(u.directives[key], " "); got != want {
			return nil, fmt.Errorf("lab: %s has %s=%s, and only %s can be put on by hand", path, key, got, want)
		}
	}
	return u, nil
}

// Wrap puts the sandbox around a command. The process that is started becomes the command: unshare, sh and setpriv each
// execute the next.
func (u *Unit) Wrap(cmd *exec.Cmd) *exec.Cmd {
	var caps []string
	for _, c := range u.directives["CapabilityBoundingSet"] {
		caps = append(caps, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	optional := func(paths []string) string { return strings.ReplaceAll(" "+strings.Join(paths, " "), " -", " ") }
	script := `set -e
writable="$LAB_DIR` + optional(u.directives["ReadWritePaths"]) + `"
for p in $writable; do [ ! -e "$p" ] || mount --bind "$p" "$p"; done
for p in` + optional(u.directives["ReadOnlyPaths"]) + `; do [ ! -e "$p" ] || { mount --rbind "$p" "$p" && mount -o remount,bind,ro "$p"; }; done
dev="$LAB_DIR/dev-$$"; mkdir "$dev"; mount -t tmpfs -o mode=755 none "$dev"; mkdir "$dev/net"
for d in null zero full random urandom tty` + deviceNames(u.directives["DeviceAllow"]) + `; do touch "$dev/$d"; mount --bind "/dev/$d" "$dev/$d"; done
mount --rbind "$dev" /dev
# Everything that is mounted, but for what is writable, and the kernel's own file systems as with ProtectSystem=strict.
while read -r _ _ _ _ at _; do
  case "$at" in /dev|/dev/*|/proc|/proc/*|/sys|/sys/*) continue;; esac
  for p in $writable; do case "$at" in "$p"|"$p"/*) continue 2;; esac; done
  mount -o remount,bind,ro "$at" || echo "left writable: $at" >&2
done </proc/self/mountinfo
exec setpriv --bounding-set "-all,$LAB_CAPS" --inh-caps -all --no-new-privs -- "$@"
`
	args := append([]string{"--mount", "--propagation", "slave", "/bin/sh", "-c", script, "sh"}, cmd.Args...)
	wrapped := exec.Command("unshare", args...)
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	wrapped.Env = append(env, "LAB_DIR="+u.lab.dir, "LAB_CAPS="+strings.Join(caps, ","))
	wrapped.ExtraFiles = cmd.ExtraFiles
	return wrapped
}

// deviceNames are the paths below /dev in DeviceAllow; the modes between them are dropped.
func deviceNames(allow []string) (names string) {
	for _, a := range allow {
		if name, ok := strings.CutPrefix(a, "/dev/"); ok {
			names += " " + name
		}
	}
	return names
}
