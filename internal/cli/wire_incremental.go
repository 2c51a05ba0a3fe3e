package cli

import (
	"fmt"
	"slices"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/repo"
)

// wireIncremental: which runs are full, and what the others are.
func wireIncremental(v *conf.Values) (action.IncrementalOptions, error) {
	o := action.IncrementalOptions{Enabled: v.Bool(conf.KeyIncrementalEnabled), FullEvery: v.Int(conf.KeyIncrementalFull), Type: repo.BackupType(v.String(conf.KeyIncrementalType))}
	days := []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday counts
	for _, d := range v.List(conf.KeyIncrementalDay) {
		o.FullDays = append(o.FullDays, time.Weekday(slices.Index(days, d)))
	}
	var err error
	if o.Zone, err = time.LoadLocation(v.String(conf.KeyScheduleZone)); err != nil {
		return o, fmt.Errorf("schedule.zone: %w", err)
	}
	return o, nil
}
