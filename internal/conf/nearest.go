package conf

import "strings"

// Nearest returns the known parameter most like name, or "" if none is near: one that ends with what was typed, or the
// one with the smallest edit distance of at most a third of its length.
func Nearest(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "" || len(name) > 200 {
		return ""
	}
	best, bestDistance := "", len(name)
	for i := range table {
		known := table[i].Name
		if strings.HasSuffix(known, "."+name) {
			return known
		}
		d := distance(name, known)
		if d <= max(2, len(known)/3) && (best == "" || d < bestDistance) {
			best, bestDistance = known, d
		}
	}
	return best
}

// distance counts the insertions, deletions, substitutions and swaps of neighbours that turn a into b.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
