package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// BenchmarkADD measures ADD as the runtime sees it, with the start of the plugin's process; DEL is not in it. `make addbench` runs it:
// ADDS (200) calls of each kind, one after the other and fifty at once. With the time it tells the processor time that an ADD takes,
// of the plugin's process (and of who starts it) and of the daemon's, which says more than the time where both cores are busy.
func BenchmarkADD(b *testing.B) {
	if err := lab.Possible(); err != nil {
		b.Skip(err)
	}
	adds := 200
	if s := os.Getenv("ADDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			b.Fatalf("ADDS=%s is no number of calls", s)
		}
		adds = n
	}
	l := lab.New(b, lab.Config{Nodes: 2})
	l.Nodes[0].Start(b)
	a := l.Nodes[0]
	for _, attach := range []string{"veth", "tun"} {
		for _, at := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/%d at a time", attach, at), func(b *testing.B) {
				list := a.List(nil, lab.Conf{"type": "penstock", "attach": attach})
				var mu sync.Mutex
				var took []time.Duration
				var plugins, daemon time.Duration
				for b.Loop() {
					for done := 0; done < adds; done += at {
						b.StopTimer()
						var pods []*lab.Pod
						for range at {
							pods = append(pods, a.BarePod(b))
						}
						b.StartTimer()
						plugins, daemon = plugins-children(b), daemon-cpuTime(b, a.Daemon.Process.Pid())
						var wg sync.WaitGroup
						for _, p := range pods {
							wg.Go(func() {
								begin := time.Now()
								_, err := p.Plug(list)
								d := time.Since(begin)
								if err != nil {
									b.Error(err)
								}
								mu.Lock()
								defer mu.Unlock()
								took = append(took, d)
							})
						}
						wg.Wait()
						plugins, daemon = plugins+children(b), daemon+cpuTime(b, a.Daemon.Process.Pid())
						b.StopTimer()
						for _, p := range pods {
							p.Remove(b)
						}
						time.Sleep(time.Duration(at) * 20 * time.Millisecond) // the kernel goes on taking namespaces apart, with the lock of all devices
						b.StartTimer()
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(len(took)), "ADDs")
				b.ReportMetric(plugins.Seconds()*1000/float64(len(took)), "plugin-ms/ADD")
				b.ReportMetric(daemon.Seconds()*1000/float64(len(took)), "daemon-ms/ADD")
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
			})
		}
	}
}

// children is the processor time of the processes that have ended, plugins all of them.
func children(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
