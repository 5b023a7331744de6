"""Runs that cannot work end early, and tools in one sentence."""

import errno
import os

import pytest

from taskptq.engine.checkpoint_file import local_file
from taskptq.engine.refusals import (
    check_hooks,
    one_sentence,
    refuse_replaced_input,
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.export.checkpoint import QuantizedCheckpointError


def test_our_errors_are_sentences_others_are_not(tmp_path):
    words = r'no checkpoint file .*absent'
    with pytest.raises(SystemExit, match=words), one_sentence():
        local_file(tmp_path / 'absent.pth')
    for kind in (ValueError, OSError, QuantizedCheckpointError):
        with pytest.raises(kind, match='of a host'), one_sentence():
            raise kind('of a host')


def test_a_full_disk_is_a_sentence_wherever_it_is_met():
    with pytest.raises(SystemExit, match='the disk is full'), one_sentence():
        raise OSError(errno.ENOSPC, 'No space left on device')


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    refuse_unwritable_folder(tmp_path / 'new' / 'deep', name='work_dir')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=r'work_dir=.*is not a folder'):
        refuse_unwritable_folder(tmp_path / 'file' / 'a', name='work_dir')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(ValueError, match=r'work_dir=.*read-only'):
        refuse_unwritable_folder(tmp_path / 'new', name='work_dir')


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    refuse_unwritable_file(tmp_path / 'new' / 'q.pth', name='--out')
    with pytest.raises(ValueError, match=r'--out=.* is a folder'):
        refuse_unwritable_file(tmp_path, name='--out')
    there = tmp_path / 'q.pth'
    there.touch()
    refuse_unwritable_file(there, name='--out')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(ValueError, match=r'--out=.* is read-only'):
        refuse_unwritable_file(there, name='--out')


def test_outputs_that_are_inputs(tmp_path):
    there, link = tmp_path / 'float.pth', tmp_path / 'link.pth'
    there.touch()
    link.symlink_to(there)
    words = 'out would replace .*float.pth, which this run reads'
    for path in (there, link, str(there)):
        with pytest.raises(ValueError, match=words):
            refuse_replaced_input(path, name='out', inputs=[None, there])
    others = [None, {}, 'w8a8', tmp_path, 'https://a/' + 'b' * 999, 'a\0']
    refuse_replaced_input(there, name='out', inputs=others)
    refuse_replaced_input(tmp_path / 'new', name='out', inputs=[there])


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (
            dict(type='taskptq.PTQHook', qconfg={}),
            r"PTQHook has unknown key 'qconfg' \(did you mean 'qconfig'",
        ),
        (dict(type='QATHook', stage=9), 'stage=9'),
        (dict(type='PTQHook', trust_checkpoint='yes'), 'trust_checkpoint'),
    ],
)
def test_settings_of_our_hooks(hook, words):
    others = [dict(type='EMAHook', no_such=3), object()]
    check_hooks(others)
    check_hooks(None)
    check_hooks([dict(type='PTQHook', priority='LOW')])
    with pytest.raises(ValueError, match=words):
        check_hooks([*others, hook])
