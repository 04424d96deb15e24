package load

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// hertz is USER_HZ, the unit of /proc/stat, which is 100 on every architecture that Go runs on.
const hertz = 100

// CPU is the time that all cores of the machine have spent since it started: in processes, in the kernel, in
// interrupts. Work that the kernel does for nobody in particular is in it, as in no process's own time.
type CPU struct {
	Busy, Stolen time.Duration
}

// ReadCPU reads /proc/stat.
func ReadCPU() (CPU, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}, err
	}
	return parseCPU(string(b))
}

func parseCPU(stat string) (c CPU, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return c, fmt.Errorf("load: /proc/stat begins with %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return c, fmt.Errorf("load: /proc/stat: %w", err)
		}
		d := time.Duration(n) * (time.Second / hertz)
		switch i {
		case 3, 4: // idle, iowait
		case 7:
			c.Stolen = d
		default: // user, nice, system, irq, softirq
			c.Busy += d
		}
	}
	return c, nil
}
