package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Leftovers lists what this process still holds of any laboratory: descriptors of network namespaces, threads
// inside others than its own, child processes. Nothing else can keep a namespace or a daemon alive, so an empty
// list means that all are gone. Threads and processes get two seconds to end.
func Leftovers() []string {
	var list []string
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if list = leftovers(); len(list) == 0 || time.Now().After(end) {
			return list
		}
	}
}

func leftovers() []string {
	var list []string
	home, _ := os.Readlink("/proc/self/ns/net")
	descriptors, _ := filepath.Glob("/proc/self/fd/*")
	for _, d := range descriptors {
		if to, _ := os.Readlink(d); strings.HasPrefix(to, "net:[") {
			list = append(list, "descriptor of namespace "+to)
		}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*")
	for _, task := range tasks {
		if at, err := os.Readlink(filepath.Join(task, "ns/net")); err == nil && at != home {
			list = append(list, "thread in namespace "+at)
		}
		children, _ := os.ReadFile(filepath.Join(task, "children"))
		for _, pid := range strings.Fields(string(children)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			list = append(list, fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	return list
}
