// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"

	"diskhook/storage/failure"
)

// templateless is the templates of a backend that keeps none: it finds none, and says
// of every copy that it is no clone. What would make or change one is not called
// then; Disk.Validate refuses what needs one.
type templateless struct{}

var errTemplateless = failure.New(failure.Precondition, "there are no templates in a thin cluster")

func (templateless) templateHome() string { return "" }
func (templateless) keeps(Copy) bool      { return false }
func (templateless) clonesHold() bool     { return true }

func (templateless) cloneless(context.Context) string {
	return "there are no templates in a thin cluster"
}

func (templateless) createTemplate(context.Context, string, int64, []string) (Copy, error) {
	return Copy{}, errTemplateless
}
func (templateless) reopenTemplate(context.Context, Copy) error { return errTemplateless }
func (templateless) finishTemplate(context.Context, Copy) error { return errTemplateless }

func (templateless) clone(context.Context, Copy, Disk, int64) error { return errTemplateless }

func (templateless) cloned(context.Context, Copy, Disk, int64) (Copy, error) {
	return Copy{}, errTemplateless
}

func (templateless) retag(context.Context, Copy, []string, []string) error { return errTemplateless }
