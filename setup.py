"""What a wheel holds: one package, segskd, with the page and all cards and studies that come with it inside.

In the repository the page lies in ui/, the cards in datasets/ and the studies in studies/; segskd/folders.py finds
them in both places.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["segskd", "segskd.*"]),
        *(f"segskd.{name}" for name in find_packages(include=["ui", "ui.*"])),
        *("segskd.cards", "segskd.studies"),
    ],
    package_dir={"segskd.ui": "ui", "segskd.cards": "datasets", "segskd.studies": "studies"},
    package_data={
        "segskd": ["py.typed"],
        "segskd.ui": ["assets/*"],
        # By name: users' own cards may lie beside them.
        "segskd.cards": ["camvid.yaml", "cityscapes.yaml", "oxford_pets.yaml", "pascal_voc.yaml", "scenes.yaml"],
        "segskd.studies": ["*.yaml"],
    },
    include_package_data=False,
)
