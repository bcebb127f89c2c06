package provision

import (
	"context"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/esp/chip"
)

// ReleaseProblems is what stands against closing the unit on a line.
func ReleaseProblems(ctx context.Context, line Line, job *Job) ([]string, error) {
	u := &unit{
		Engine: &Engine{Journal: noJournal{}}, job: job, line: line,
		model: job.Recipe.Model(), res: &Result{}, past: history{intents: map[string]bool{}},
	}
	if err := u.connectFirst(ctx); err != nil {
		return nil, err
	}
	if err := u.inspect(ctx); err != nil {
		return nil, err
	}
	return u.releaseProblems(), nil
}

// Places gives what a job puts into key blocks, in their order.
func (j *Job) Places(m chip.Model, t *table.Table) ([]efuse.KeyBurn, error) {
	k, err := j.keysFor(m, t)
	return append(burns(k.secrets), burns(k.digests)...), err
}
