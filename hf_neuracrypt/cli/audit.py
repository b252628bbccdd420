"""`audit`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_neuracrypt.cli.common import EncryptedFolder, ImageColumn, KeyFile, PassphraseFile, load_key, note
from hf_neuracrypt.errors import DatasetError


def audit(
    folder: EncryptedFolder,
    source: Annotated[str, typer.Option(help="The plain dataset it was made of, as given to `encrypt`.")],
    key_file: KeyFile,
    output: Annotated[Path, typer.Option(help="Folder for the report. It shows plain images: never publish it.")],
    passphrase_file: PassphraseFile = None,
    max_images: Annotated[int, typer.Option(min=16, metavar="N", help="How many images to look at.")] = 512,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Draws them, and which of them are known to the attacker.")
    ] = 0,
    image_column: ImageColumn = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also the attacks that train networks: without a pair, on keys of their own. Minutes more."
        ),
    ] = False,
) -> None:
    """Run the known attacks on an encrypted dataset.

    It says what leaks to whom: attacks tried, not attacks possible. It needs the plain source and the key, and
    `pip install 'hf-neuracrypt[audit]'`.

    \b
    Example:
      hf-neuracrypt audit encrypted/ --source photos/ --key-file hospital.key --output audit/
    """
    from hf_neuracrypt.data.places import check_places

    check_places(source, key_file, output)
    if output.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"the output {output} lies inside {folder}, which gets published: choose another folder")
    key = load_key(key_file, passphrase_file)

    from hf_neuracrypt.audit.attacks import run_audit
    from hf_neuracrypt.audit.report import write_report
    from hf_neuracrypt.audit.results import GRADES, NOT_APPLICABLE

    note(
        f"Attacking up to {max_images:,} images of {folder}. With 512 of 224 pixels, one core takes about "
        f"{'ten minutes' if deep else 'a minute'}."
    )
    result = run_audit(folder, source, key, max_images=max_images, seed=seed, image_column=image_column, train=deep)
    write_report(result, output)
    tried = [row for row in result.rows if row.grade != NOT_APPLICABLE]
    table = [(row.grade, row.title, row.attacker) for row in sorted(tried, key=lambda row: GRADES.index(row.grade))]
    for grade, title, attacker in [("grade", "attack", "what the attacker has"), *table]:
        typer.echo(f"{grade:13}  {title:36}  {attacker}")
    if skipped := [row.title for row in result.rows if row.grade == NOT_APPLICABLE]:
        typer.echo(f"{NOT_APPLICABLE}: {', '.join(skipped)}")
    note(f"{len(result.pairs):,} images were looked at. These are attacks tried, not attacks possible.")
    note(f"Wrote {output}: audit.html says what each found, and shows plain images: keep it. Next, with figures alone:")
    note(f"  hf-neuracrypt push {folder} OWNER/NAME --key-file {key_file} --audit {output / 'audit.json'}")
