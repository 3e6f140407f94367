"""What tells one data set of the CIFAR family from another.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import dataclasses
from typing import NamedTuple


class File(NamedTuple):
    """One file of records.

    Attributes:
      name: without the ending, which is ".bin" in the binary format and "" in the Python format.
      records: how many images it holds.
      python_md5: the published MD5 of the file in the Python format. (None is published for the
        binary format.)
    """

    name: str
    records: int
    python_md5: str


class Release(NamedTuple):
    """One format in which the data set is published."""

    archive: str
    md5: str  # of the archive
    folder: str  # that the archive unpacks to


@dataclasses.dataclass(frozen=True)
class Spec:
    """What tells one data set of the CIFAR family from another.

    Attributes:
      name: the name in `jaxcifar.data.load`.
      title: the name in messages.
      classes: the class names in the order of the labels, separated by white space.
      mean, std: of the training pixels by channel, in units of 1 (pixel / 255).
      train, test: the files of each split, in the official order.
      label_bytes: how many label bytes precede the pixels of a binary record; the last one counts.
      label_key: of the labels in the pickled dict of the Python format.
      label_column: of the labels in Hugging Face's Parquet files.
      binary, python: the two published formats.
      builder: the class in `tensorflow_datasets.image_classification.cifar`; "" if that has none,
        and the data set cannot be downloaded.
      page: where the archives and their MD5s are published.
    """

    name: str
    title: str
    classes: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: tuple[File, ...]
    test: tuple[File, ...]
    label_bytes: int
    label_key: bytes
    label_column: str
    binary: Release
    python: Release
    builder: str
    page: str = "https://www.cs.toronto.edu/~kriz/cifar.html"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes.split())

    def files(self, split: str) -> tuple[File, ...]:
        """Returns the files of "train" or "test"."""
        return {"train": self.train, "test": self.test}[split]

    def count(self, split: str) -> int:
        """Returns the number of images of "train" or "test"."""
        return sum(file.records for file in self.files(split))


CIFAR10 = Spec(
    name="cifar10",
    title="CIFAR-10",
    classes="airplane automobile bird cat deer dog frog horse ship truck",
    # Of the 50,000 training images. A frequently copied wrong constant is 0.2023 for the first std.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    train=(
        File("data_batch_1", 10_000, "c99cafc152244af753f735de768cd75f"),
        File("data_batch_2", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
        File("data_batch_3", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
        File("data_batch_4", 10_000, "634d18415352ddfa80567beed471001a"),
        File("data_batch_5", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(File("test_batch", 10_000, "40351d587109b95175f43aff81a1287e"),),
    label_bytes=1,
    label_key=b"labels",
    label_column="label",
    binary=Release(
        "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"
    ),
    python=Release(
        "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
    ),
    builder="Cifar10",
)

CIFAR100 = Spec(
    name="cifar100",
    title="CIFAR-100",
    classes="""
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
        kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
        mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
        plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
        telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
        woman worm
    """,
    # Of the 50,000 training images. To five digits: 0.50708 0.48655 0.44092, and for the
    # standard deviation 0.26733 0.25644 0.27615.
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    train=(File("train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),),
    test=(File("test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    label_bytes=2,  # the superclass, one of 20, then the class
    label_key=b"fine_labels",
    label_column="fine_label",
    binary=Release(
        "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"
    ),
    python=Release(
        "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
    ),
    builder="Cifar100",
)
