// SPDX-License-Identifier: Apache-2.0

package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Verbs are what an engine tells a host. All of them may be called again.
type Verbs interface {
	OnJoin(ctx context.Context) error
	OnLeave(ctx context.Context) error
	// OnMaster claims an epoch. It is a failure.Conflict (errors.Is) when the disk
	// knows that one or a higher one as another host's.
	OnMaster(ctx context.Context, epoch uint64) error
	OnDemoted(ctx context.Context) error
	// OnFenced is for the master, under the epoch that it claimed.
	OnFenced(ctx context.Context, host string, epoch uint64, evidence Evidence) error
	// Epoch is the one on disk.
	Epoch(ctx context.Context) (uint64, error)
}

// Commands are the verbs as the command line has them, so that an adapter does
// nothing that a script could not do.
type Commands struct {
	Run     command.Runner
	Program string // absolute path of diskhook
	Cluster string
}

// verbTimeout bounds one verb. It starts a pool, or waits for a volume group that
// another host has locked.
const verbTimeout = 10 * time.Minute

// The exit codes of diskhook that an adapter tells apart.
var exitKinds = map[int]*failure.Kind{4: failure.Conflict, 5: failure.Temporary, 7: failure.Precondition}

func (c Commands) verb(ctx context.Context, name string, args ...string) ([]byte, error) {
	argv := append([]string{"thin", name, "--cluster", c.Cluster}, args...)
	r, err := c.Run.Run(ctx, command.Cmd{Name: c.Program, Args: argv, Timeout: verbTimeout})
	if exit := new(command.Error); errors.As(err, &exit) && exitKinds[exit.Code] != nil {
		err = failure.Wrap(exitKinds[exit.Code], err)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %s: %w", c.Cluster, name, err)
	}
	return r.Stdout, nil
}

// OnJoin implements Verbs.
func (c Commands) OnJoin(ctx context.Context) error {
	_, err := c.verb(ctx, "on-join")
	return err
}

// OnLeave implements Verbs.
func (c Commands) OnLeave(ctx context.Context) error {
	_, err := c.verb(ctx, "on-leave")
	return err
}

// OnMaster implements Verbs.
func (c Commands) OnMaster(ctx context.Context, epoch uint64) error {
	_, err := c.verb(ctx, "on-master", "--epoch", strconv.FormatUint(epoch, 10))
	return err
}

// OnDemoted implements Verbs.
func (c Commands) OnDemoted(ctx context.Context) error {
	_, err := c.verb(ctx, "on-demoted")
	return err
}

// OnFenced implements Verbs.
func (c Commands) OnFenced(ctx context.Context, host string, epoch uint64, evidence Evidence) error {
	_, err := c.verb(ctx, "on-fenced", "--epoch", strconv.FormatUint(epoch, 10), "--evidence", evidence.String(), "--", host)
	return err
}

// Epoch implements Verbs.
func (c Commands) Epoch(ctx context.Context) (uint64, error) {
	out, err := c.verb(ctx, "membership", "--output", "json")
	if err != nil {
		return 0, err
	}
	var answer Standing
	if err := json.Unmarshal(out, &answer); err != nil {
		return 0, fmt.Errorf("cluster %s: membership: %w", c.Cluster, err)
	}
	return answer.Epoch, nil
}

// Standing is what `thin membership -o json` prints.
type Standing struct {
	Cluster string `json:"cluster"`
	Host    string `json:"host"`
	// Epoch is the one on disk, and Master whether it is this host's.
	Epoch  uint64 `json:"epoch"`
	Master bool   `json:"master"`
}
