package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{7}, spread{1, 7, 7, 7}},
		{[]float64{4, 1, 3, 2}, spread{4, 1.75, 2.5, 3.25}}, // as R's quantile() says
		{[]float64{9, 1, 2, 8, 3, 7, 4, 6, 5}, spread{9, 3, 5, 7}},
		{[]float64{math.NaN(), 2, math.Inf(1), 4}, spread{2, 2.5, 3, 3.5}},
	} {
		before := slices.Clone(c.values)
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v: %+v, not %+v", c.values, got, c.want)
		}
		for i := range before {
			if c.values[i] != before[i] && !math.IsNaN(before[i]) {
				t.Errorf("%v became %v", before, c.values)
			}
		}
	}
	if s := spreadOf(nil); s.N != 0 || !math.IsNaN(s.Median) {
		t.Errorf("of nothing: %+v", s)
	}
}

// TestRatiosArePaired: what slows both halves of a pair leaves the ratio as it is.
func TestRatiosArePaired(t *testing.T) {
	var base, subject []float64
	for range 100 {
		f := 0.2 + rand.Float64()
		base, subject = append(base, 100*f), append(subject, 300*f)
	}
	if s := spreadOf(ratios(base, subject)); math.Abs(s.Median-3) > 1e-9 || s.IQR() > 1e-9 {
		t.Errorf("%+v", s)
	}
	if got := ratios([]float64{1, 2}, []float64{3}); len(got) != 1 {
		t.Errorf("half a pair counts: %v", got)
	}
}

func TestJudge(t *testing.T) {
	least := bar{Must: 3, Aim: 6}
	most := bar{Must: 0.8, Aim: 0.4, Most: true}
	around := func(median, iqr float64) spread { return spread{9, median - iqr/2, median, median + iqr/2} }
	for _, c := range []struct {
		name string
		bar  bar
		s    spread
		want verdict
	}{
		{"above", least, around(3.1, 0), mustMet},
		{"exactly", least, around(3, 0), mustMet},
		{"half the IQR below", least, around(2.75, 0.5), mustMet},
		{"more than that below", least, around(2.7, 0.5), missed},
		{"no spread to excuse it", least, around(2.99, 0), missed},
		{"the aim", least, around(5.9, 0.25), aimMet},
		{"less is better: below", most, around(0.7, 0), mustMet},
		{"half the IQR above", most, around(0.875, 0.25), mustMet},
		{"more than that above", most, around(0.9, 0.125), missed},
		{"less is better: the aim", most, around(0.375, 0), aimMet},
		{"eight pairs", least, spread{8, 9, 9, 9}, tooFew},
		{"nothing", least, spreadOf(nil), tooFew},
	} {
		if got := c.bar.judge(c.s, enoughPairs); got != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
}

// TestBarsHaveCells: a bar whose pattern fits no cell would never be judged, and one whose metric no sample has
// would never be met.
func TestBarsHaveCells(t *testing.T) {
	all := matrix()
	for _, b := range bars {
		found := 0
		for _, c := range all {
			if ok, err := fits(c.name(), b.Cell); err != nil {
				t.Fatal(err)
			} else if !ok {
				continue
			}
			found++
			if !slices.ContainsFunc(metrics[c.Burden.Shape], func(m metric) bool { return m.Name == b.Metric }) {
				t.Errorf("%s has no metric %q", c.name(), b.Metric)
			}
		}
		if found == 0 || found > 2 {
			t.Errorf("%s fits %d cells", b.Cell, found)
		}
		if (b.Aim > b.Must) == b.Most && b.Aim != b.Must {
			t.Errorf("%s %s: the aim is easier than the must", b.Cell, b.Metric)
		}
	}
	names := map[string]bool{}
	for _, c := range all {
		if names[c.name()] {
			t.Errorf("%s is there twice", c.name())
		}
		names[c.name()] = true
	}
}
