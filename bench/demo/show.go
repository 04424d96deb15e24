package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// show is the part of the demo about one encapsulation. It is a lab.TB, so that the laboratory can tell it
// what fails and leave it the cleaning up.
type show struct {
	ctx      context.Context
	encap    string
	begin    time.Time
	table    *table
	cleanups []func()
	failed   bool
}

// stopped is what Fatalf panics with.
type stopped struct{ message string }

func (s *show) Helper()                           {}
func (s *show) Name() string                      { return "demo/" + s.encap }
func (s *show) Failed() bool                      { return s.failed }
func (s *show) Cleanup(fn func())                 { s.cleanups = append(s.cleanups, fn) }
func (s *show) Logf(format string, args ...any)   { fmt.Printf(format+"\n", args...) }
func (s *show) Skipf(format string, args ...any)  { s.Fatalf(format, args...) }
func (s *show) Fatalf(format string, args ...any) { panic(stopped{fmt.Sprintf(format, args...)}) }

func (s *show) Errorf(format string, args ...any) {
	s.failed = true
	s.table.fail("laboratory", s.encap, fmt.Errorf(format, args...))
}

// play builds the network, runs every check, and takes the network down whatever happened.
func (s *show) play() {
	defer s.cleanUp()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stopped:
			if s.ctx.Err() == nil {
				s.Errorf("%s", r.message)
			}
		default:
			s.cleanUp()
			panic(r)
		}
	}()
	s.say("starting")
	l := lab.New(s, lab.Config{Encap: s.encap})
	if s.ctx.Err() == nil {
		l.Start(s)
	}
	var pods []*lab.Pod
	for _, n := range l.Nodes {
		for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
			if s.ctx.Err() != nil {
				return
			}
			pods = append(pods, n.AddPodByPlugin(s, attach))
		}
	}
	c := &checks{show: s, nodes: l.Nodes, pods: pods}
	for _, step := range c.steps() {
		if s.ctx.Err() != nil {
			return
		}
		s.say("%s …", step.name)
		began := time.Now()
		cell, err := step.run()
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			s.failed = true
			s.say("%s: FAILED: %v", step.name, err)
			s.table.fail(step.name, s.encap, err)
		default:
			s.say("%s: %s (%.1f s)", step.name, cell, time.Since(began).Seconds())
			s.table.set(step.name, s.encap, cell)
		}
	}
	for _, n := range l.Nodes {
		n.Daemon.Stop(s)
	}
}

func (s *show) cleanUp() {
	for len(s.cleanups) > 0 {
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		last()
	}
}

// say prints a line of progress.
func (s *show) say(format string, args ...any) {
	if strings.HasSuffix(format, "…") && !terminal() {
		return // only worth a line where the next one replaces it
	}
	text := fmt.Sprintf("%5.1f s  %-5s  ", time.Since(s.begin).Seconds(), s.encap) + fmt.Sprintf(format, args...)
	switch {
	case !terminal():
		fmt.Println(text)
	case strings.HasSuffix(format, "…"):
		fmt.Print("\r\x1b[K" + text)
	default:
		fmt.Println("\r\x1b[K" + text)
	}
}
