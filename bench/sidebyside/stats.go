package main

import (
	"math"
	"slices"
)

// spread is what a series of figures comes to.
type spread struct {
	N              int
	Q1, Median, Q3 float64
}

// IQR is the interquartile range.
func (s spread) IQR() float64 { return s.Q3 - s.Q1 }

// spreadOf leaves the series as it is.
func spreadOf(values []float64) spread {
	v := slices.DeleteFunc(slices.Clone(values), func(f float64) bool { return math.IsNaN(f) || math.IsInf(f, 0) })
	if len(v) == 0 {
		return spread{Q1: math.NaN(), Median: math.NaN(), Q3: math.NaN()}
	}
	slices.Sort(v)
	return spread{N: len(v), Q1: quantile(v, 0.25), Median: quantile(v, 0.5), Q3: quantile(v, 0.75)}
}

// quantile interpolates between the two nearest of sorted values (R's type 7, the default of most programs).
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// ratios divides pair by pair.
func ratios(base, subject []float64) []float64 {
	var list []float64
	for i := range min(len(base), len(subject)) {
		list = append(list, subject[i]/base[i])
	}
	return list
}
