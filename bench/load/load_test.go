package load

import (
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestParseCPU(t *testing.T) {
	c, err := parseCPU("cpu  100 200 300 4000 50 6 7 80 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil || c.Busy != 6130*time.Millisecond || c.Stolen != 800*time.Millisecond {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu a b c d e f g h\n", "cpu0 1 2 3 4 5 6 7 8\n"} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestMessageStride: the kernel walks an array of these.
func TestMessageStride(t *testing.T) {
	want := uintptr(64)
	if runtime.GOARCH == "386" || runtime.GOARCH == "arm" {
		want = 32
	}
	if got := unsafe.Sizeof(mmsghdr{}); got != want {
		t.Errorf("struct mmsghdr has %d bytes, not %d", got, want)
	}
}

// TestShuffled: the shares of sizes and flows are exact, and no flow has several datagrams in a row for long.
func TestShuffled(t *testing.T) {
	sizes := []int{64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1400}
	for _, burst := range []int{0, 1, 8} {
		j := &running{Job: Job{Sizes: sizes, Burst: burst}}
		got, flows := j.shuffled(16)
		bySize, byFlow, changes := map[int]int{}, map[int]int{}, 0
		for i := range pattern {
			bySize[got[i]]++
			byFlow[flows[i]]++
			if i > 0 && flows[i] != flows[i-1] {
				changes++
			}
		}
		if bySize[64] != 448 || bySize[570] != 256 || bySize[1400] != 64 {
			t.Errorf("sizes %v", bySize)
		}
		for f, n := range byFlow {
			if n != pattern/16 {
				t.Errorf("burst %d: flow %d has %d of %d", burst, f, n, pattern)
			}
		}
		if most := pattern / max(1, burst); changes >= most || changes < most*3/4 {
			t.Errorf("burst %d: the flow changes %d times", burst, changes)
		}
	}
}

// TestLoop: who makes turns keeps his place and his thread for longer than Go's monitor lets others have theirs (10 ms), even if it is the only place.
func TestLoop(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var started, taken, moved bool
	var ran atomic.Bool
	thread, begin, j := 0, time.Now(), &running{}
	err := j.loop(func() error {
		if !started {
			started, thread = true, unix.Gettid()
			go ran.Store(true)
		}
		moved = moved || unix.Gettid() != thread
		if time.Since(begin) > 100*time.Millisecond {
			taken = ran.Load()
			return errEnded
		}
		return nil
	})
	if err != errEnded || taken || moved {
		t.Errorf("%v; somebody else had the place: %v; another thread: %v", err, taken, moved)
	}
	for deadline := time.Now().Add(10 * time.Second); !ran.Load(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nobody else runs after the loop")
		}
	}
}

// pair is two pods of a network without tunnels, and a process in each.
func pair(t *testing.T) (send, take *Agent, from, to []*lab.Pod) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Roles: []lab.Role{lab.PlainRouting, lab.PlainRouting}, Wiring: lab.Direct})
	for range 2 {
		from, to = append(from, l.Nodes[0].AddPod(t, lab.Plain)), append(to, l.Nodes[1].AddPod(t, lab.Plain))
	}
	var err error
	if send, err = StartAgent(from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(send.Close)
	if take, err = StartAgent(to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(take.Close)
	return send, take, from, to
}

// TestTraffic makes every kind of traffic for a moment and looks whether the two ends agree.
func TestTraffic(t *testing.T) {
	send, take, _, to := pair(t)
	for _, c := range []struct {
		name           string
		sender, taker  Kind
		flows          int
		sizes          []int
		perPod, stream bool
	}{
		{"one flow", SendDatagrams, ReceiveDatagrams, 1, []int{64}, false, false},
		{"sixteen flows", SendDatagrams, ReceiveDatagrams, 16, []int{64, 570, 1400}, false, false},
		{"two pods", SendDatagrams, ReceiveDatagrams, 2, []int{64}, true, false},
		{"streams", SendStreams, ReceiveStreams, 4, nil, true, true},
		{"datagram questions", AskDatagrams, AnswerDatagrams, 1, []int{64}, false, true},
		{"stream questions", AskStreams, AnswerStreams, 1, []int{64}, false, true},
		{"connections", Connect, AnswerStreams, 4, []int{64}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var at, dst []Flow
			for i := range c.flows {
				f := Flow{At: netip.AddrPortFrom(to[0].IP4, 0)}
				if c.perPod {
					f = Flow{Pod: i % 2, At: netip.AddrPortFrom(to[i%2].IP4, 0)}
				}
				at = append(at, f)
			}
			ports, err := take.Start(Job{Kind: c.taker, Flows: at, Sizes: c.sizes})
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range at {
				dst = append(dst, Flow{Pod: f.Pod, At: netip.AddrPortFrom(f.At.Addr(), ports[i])})
			}
			if _, err := send.Start(Job{Kind: c.sender, Flows: dst, Sizes: c.sizes}); err != nil {
				t.Fatal(err)
			}
			if _, err := send.Start(Job{Kind: c.sender, Flows: dst, Sizes: c.sizes}); err == nil {
				t.Error("a second job was started")
			}
			time.Sleep(50 * time.Millisecond)
			first, err := take.Mark()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := send.Mark(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
			second, err := take.Mark()
			if err != nil {
				t.Fatal(err)
			}
			sent, err := send.Stop()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			got, err := take.Stop()
			if err != nil {
				t.Fatal(err)
			}
			if sent.Failed+got.Failed != "" {
				t.Errorf("failed: %q %q", sent.Failed, got.Failed)
			}
			if second.Bytes <= first.Bytes || second.Time-first.Time < 150*time.Millisecond {
				t.Errorf("between the marks %v and %v nothing moved", first, second)
			}
			switch {
			case got.Packets > sent.Packets+uint64(c.flows) || got.Bytes > sent.Bytes+uint64(c.flows*128):
				t.Errorf("%d packets with %d bytes came of %d with %d", got.Packets, got.Bytes, sent.Packets, sent.Bytes)
			case c.sender != SendStreams && got.Packets < sent.Packets/2:
				t.Errorf("%d of %d packets came", got.Packets, sent.Packets)
			}
			if asks := c.sender == AskDatagrams || c.sender == AskStreams || c.sender == Connect; asks &&
				(sent.P50 <= 0 || sent.P99 < sent.P50 || sent.P999 < sent.P99 || sent.Lost > 0) {
				t.Errorf("p50 %v, p99 %v, p99.9 %v, lost %d", sent.P50, sent.P99, sent.P999, sent.Lost)
			}
		})
	}
}

// TestRefusals: what cannot be done is an error at once, and the process stays usable.
func TestRefusals(t *testing.T) {
	send, _, _, to := pair(t)
	nobody := netip.AddrPortFrom(to[0].IP4, 9)
	for name, j := range map[string]Job{
		"no flows":         {Kind: SendStreams},
		"no such pod":      {Kind: SendStreams, Flows: []Flow{{Pod: 2, At: nobody}}},
		"no such kind":     {Kind: "sing", Flows: []Flow{{At: nobody}}},
		"nobody listens":   {Kind: SendStreams, Flows: []Flow{{At: nobody}}},
		"not its address":  {Kind: ReceiveDatagrams, Flows: []Flow{{At: nobody}}},
		"no such address ": {Kind: ReceiveStreams, Flows: []Flow{{At: nobody}}},
	} {
		if _, err := send.Start(j); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := send.Mark(); err == nil {
		t.Error("a mark without a job")
	}
	if _, err := send.Stop(); err != nil {
		t.Errorf("stop without a job: %v", err)
	}
}
