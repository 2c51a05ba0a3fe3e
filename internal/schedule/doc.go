// Package schedule is calendar arithmetic and a loop that runs functions at times. It knows nothing of backups.
//
// A Spec says when: never, every so often, or at the times of a cron expression on the wall clock of a zone. Each time that
// the wall clock names happens exactly once, whatever the zone's rules do:
//
//	clock goes forward    02:00 ─► 03:00    a time in between happens when the gap ends
//	clock goes back       03:00 ─► 02:00    a time that is shown twice happens the first time
//
// A Loop runs one job at a time and keeps in a Store which times are dealt with, so that nothing happens twice and nothing
// is lost when the process, the host or the clock does something unexpected:
//
//	missed       nobody was there at the time: made up once, however many times were missed
//	interrupted  the process died, or was told to end, during a run that had not done its work: made up once
//	overlapped   the job itself was still running: passed over, and said
//	late         another job was running: it runs when that one has ended; a job that yields is ended for one that does not
//	changed      a new Spec counts from the moment it is seen; a time that the old one owed is still made up
package schedule
